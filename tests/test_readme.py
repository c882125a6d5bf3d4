"""README and docs: every link, file, command and parameter that they name exists, and their code runs."""

import gzip
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pipeline.compress import restore
from pipeline.experiment.experiment import check_params
from pipeline.reporting.report import markdown
from pipeline.workflow.params import Params
from pipeline.workflow.plug import FOLDERS, names
from pipeline.workflow.validation import validated
from pipeline.workflow.yaml_values import read_yaml
from tests.project import ROOT, SMALL, STAGES, Project

PAGES = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
KEPT_TABLES = [
    str(path.relative_to(ROOT))
    for folder in ("studies", "stream", "benchmarks")
    for path in sorted((ROOT / folder).glob("**/results/**/*.md"))
]
NOTEBOOKS = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
CODE_FOLDERS = (
    "pipeline",
    "stages",
    "tests",
    "studies",
    "benchmarks",
    "notebooks",
    "stream",
    "sweep",
    "chain",
    "docs",
    "data",
)
RESULTS = ROOT / "studies/overall/results"
SETTINGS = {  # column of the results: profile of the study, and its data set
    "planted": ("methods", "synthetic"),
    "ML-100K": ("methods", "movielens-100k"),
    "ML-1M": ("methods_1m", "movielens-1m"),
}
EVERY_METHOD = "### Every method at a tenth of the bytes"
MARKS = {"more": " ▲", "less": " ▼"}  # beside one dimension of its size, after correction


@cache
def text_of(page: str) -> str:
    """The text of a page, or of the texts between the code of a notebook."""
    text = (ROOT / page).read_text()
    if not page.endswith(".ipynb"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def blocks(page: str, language: str = "") -> list[str]:
    """The code blocks of a page, of one language or of all."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for of, block in found if language in ("", of)]


def spans(page: str) -> list[str]:
    """The pieces of code in the running text of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL))


def lines_of_code(page: str) -> list[str]:
    """All code of a page; a command that goes over several lines is one of them."""
    return [line for code in (*blocks(page), *spans(page)) for line in code.replace("\\\n", "").splitlines()]


def table(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the first table below a title."""
    _, found, rest = text.partition(title)
    assert found, title
    lines = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert lines, title
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def anchors(page: str) -> set[str]:
    """What a link may name in a page: its titles, as GitHub writes them, and its own marks."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text_of(page)))


# --- what the pages name


@pytest.mark.parametrize("page", [*PAGES, *KEPT_TABLES, *NOTEBOOKS])
def test_every_link_leads_to_a_file_and_a_title(page: str) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)|<(?:a|img)[^>]* (?:href|src)=[\"']([^\"']+)", text)
    assert text.count("](") + len(re.findall(" (?:href|src)=", text)) == len(links), "a link that is not closed"
    for link in ("".join(found) for found in links):
        if re.match(r"\w+:", link):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./?&=#~%+-]*)?", link), link
            continue
        path, _, anchor = link.partition("#")
        target = os.path.relpath((ROOT / page).parent / path if path else ROOT / page, ROOT)
        assert (ROOT / target).exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_that_code_and_settings_name_has_what_they_say() -> None:
    named = set()
    for path in [*ROOT.glob("*.yaml"), *(path for top in CODE_FOLDERS for path in (ROOT / top).rglob("*"))]:
        if path.suffix in (".py", ".yaml", ".csv") and not path.is_relative_to(ROOT / "docs/site"):
            named |= set(re.findall(r"(?<![\w/])((?:docs/[\w-]+|data/README)\.md)(?:#([\w-]+))?", path.read_text()))
    assert named
    for page, anchor in named:
        assert (ROOT / page).is_file(), page
        assert not anchor or anchor in anchors(page), (page, anchor)


def test_the_contents_of_the_site_list_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "docs/site/pages.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trees = re.findall(r"^```{toctree}\n(.*?)^```", (tmp_path / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for line in "".join(trees).splitlines() if line and not line.startswith(":")]
    listed = [line.split()[-1].strip("<>") for line in lines]  # a title may stand before the page
    written = [str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.rglob("*.md")]
    assert sorted([*listed, "index"]) == sorted(written)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS])
def test_every_target_of_make_and_every_module_exists(page: str) -> None:
    code = "\n".join(lines_of_code(page))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)", code)) <= targets
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS])
def test_every_file_of_the_repository_that_a_page_names_exists(page: str) -> None:
    for span in spans(page):
        if re.fullmatch(rf"(?:{'|'.join(CODE_FOLDERS)})/[\w./-]+", span) and not span.startswith("data/"):
            ignored = span.startswith("studies/report.html")  # which `make report` writes
            assert ignored or (ROOT / span).exists(), span


@pytest.mark.parametrize("page", PAGES)
def test_every_parameter_that_a_page_names_is_in_params_yaml(page: str) -> None:
    sections = "|".join(Params.model_fields)
    for span in spans(page):
        if named := re.match(rf"(?:{sections})(?:\.\w+)+", span):
            value = read_yaml(ROOT / "params.yaml")
            for part in named[0].split("."):
                assert part in value, span
                value = value[part]


@pytest.mark.parametrize("page", PAGES)
def test_every_environment_variable_of_ours_is_read_by_the_code(page: str) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    for variable in re.findall(r"PIPELINE_\w+", text_of(page)):
        assert f'"{variable}"' in code, variable


def changes() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command that sets parameters."""
    for page in PAGES:
        for line in lines_of_code(page):
            if re.search(r"(?:^| )-S ", line):
                yield page, shlex.split(line)


@pytest.mark.parametrize(("page", "words"), list(changes()))
def test_every_command_that_sets_parameters_is_accepted(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = read_yaml(ROOT / "params.yaml")
    for option, word in itertools.pairwise(words):
        if option != "-S":
            continue
        key, _, value = word.partition("=")
        *parents, last = key.removeprefix("+").split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {}) if key.startswith("+") else section[parent]
        assert (last not in section) == key.startswith("+"), f"{word}: a plus is for what params.yaml does not hold"
        section[last] = yaml.safe_load(value)
    if values["dataset"]["path"].endswith(".url"):  # the command before writes this file
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        file = tmp_path / values["dataset"]["path"]
        file.parent.mkdir()
        file.write_text("s3a://bucket/clicks")
    check_params(validated(Params, values, page))


def test_every_section_of_params_yaml_for_a_table_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "data/README.md"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shown = blocks(page, "yaml")
    assert shown
    for block in shown:
        data = tmp_path / yaml.safe_load(block)["dataset"]["path"]
        data.parent.mkdir(exist_ok=True)
        data.touch()
        check_params(validated(Params, read_yaml(ROOT / "params.yaml") | yaml.safe_load(block), page))


def test_the_report_that_the_readme_shows_is_the_one_that_the_notebooks_keep() -> None:
    kept = set(markdown(json.loads((ROOT / "notebooks/kept/report.json").read_text())).splitlines())
    (shown,) = [block for block in blocks("README.md") if block.startswith("**Deploy")]
    assert [line for line in shown.splitlines() if line and line not in kept] == []


# --- methods


def method_of(row: Mapping[str, str]) -> str:
    return row["method"].strip("`")


@pytest.mark.parametrize(("page", "title"), [("docs/methods.md", "# Methods"), ("docs/results.md", EVERY_METHOD)])
def test_every_method_has_a_row_and_every_row_a_method(page: str, title: str) -> None:
    assert sorted(map(method_of, table(text_of(page), title))) == names("methods")


@pytest.mark.parametrize("row", table(text_of("docs/results.md"), EVERY_METHOD), ids=method_of)
def test_the_results_of_a_method_are_those_of_the_committed_comparison(row: Mapping[str, str]) -> None:
    method = method_of(row)
    size = "no budget" if method == "full" else "budget 10%"
    for setting, (profile, dataset) in SETTINGS.items():
        measured = table((RESULTS / profile / "table.md").read_text(), f"**{dataset}, deepfm, {size}**")
        lines = [line for line in measured if line["method"] == method]
        shown = [line["AUC"] + MARKS.get(line["AUC is"], "") for line in lines] or ["–"]  # it came after the study
        assert [row[setting]] == shown, setting


# --- architecture


def test_the_table_of_what_runs_again_is_that_of_dvc_yaml() -> None:
    entries = {stage: entry for stage, entry in read_yaml(ROOT / "dvc.yaml")["stages"].items() if stage in STAGES}
    told = set()
    for row in table(text_of("docs/architecture.md"), "## What runs again after a change"):
        marked = {stage for stage in STAGES if row[f"`{stage}`"] == "•"}
        for name in re.findall(r"`([^`]+)`", row["change"]):
            assert {stage for stage, entry in entries.items() if _depends(entry, name)} == marked, name
            told.add(name)
    declared = {part for entry in entries.values() for part in (*entry["deps"], *entry["params"])}
    named = {_shown(part) for part in declared if not part.startswith(("artifacts/", "stages/", "${"))}
    assert named | set(Params.model_fields) | {f"pipeline/{room}" for room in _rooms() - set(FOLDERS)} == told


def _depends(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a stage depends on a file, a folder, or a parameter or one that holds it."""
    wholes = {".".join(name.split(".")[: end + 1]) for end in range(name.count(".") + 1)}
    return name in map(_shown, entry["deps"]) or bool(wholes & set(entry["params"]))


def _shown(dependency: str) -> str:
    """A dependency in dvc.yaml as the table calls it."""
    return re.sub(r"\$\{\w+\.name\}", "<name>", dependency)


def test_the_table_of_rooms_is_that_of_the_floors_that_are_checked() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = [floor.replace("pipeline.", "").split(" | ") for floor in contract["layers"] if floor != "stages"]
    rows = table(text_of("docs/architecture.md"), "## The rooms")
    assert [row["room"].strip("`") for row in rows] == [room for floor in floors for room in floor]
    numbers = [
        str(len(floors) - place) if room == floor[0] else "" for place, floor in enumerate(floors) for room in floor
    ]
    assert [row["floor"] for row in rows] == numbers
    assert {row["room"].strip("`") for row in rows} == _rooms()


def _rooms() -> set[str]:
    return {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}


# --- code that runs


def test_all_python_code_is_on_the_pages_whose_code_the_tests_run() -> None:
    run = ["README.md", "docs/coding.md", "docs/extending.md", "docs/library.md", "docs/serving.md"]
    assert [page for page in PAGES if blocks(page, "python")] == run


@pytest.mark.parametrize("page", ["README.md", "docs/coding.md"])
def test_the_code_for_a_model_of_ones_own_compresses_and_restores_one(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(300, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).prod(1).sum(1)

    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    ids = torch.randint(300, (500, 2))
    names = {"torch": torch, "MyModel": MyModel, "model": MyModel(), "batches": [(ids, torch.ones(500))]}
    exec(block, names)
    same = restore(MyModel(), torch.load("small.pt"))
    assert torch.equal(same(ids), names["small"](ids))
    assert "bytes of tables" in f"{names['report']}" and (tmp_path / "small.pt").stat().st_size < 300 * 8 * 4


def test_the_code_for_tables_in_a_model_of_ones_own_trains_finishes_and_serves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    allocation = {"method": "autodim", "dims": {"user": 2, "item": 16, "genres": 3}}
    (tmp_path / "allocation.json").write_text(json.dumps(allocation))
    ids = torch.cat([torch.randint(3707, (500, 2)), torch.randint(19, (500, 6))], 1)
    names = {"batches": [(ids, torch.ones(500))], "ids": ids}
    for block in blocks("docs/library.md", "python"):
        exec(block, names)
    torch.testing.assert_close(names["vectors"], names["tables"](ids).detach(), rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert f"{4 * (6041 * 2 + 2 * 16 + 3707 * 16 + 19 * 3 + 3 * 16)} bytes" in printed
    assert "'embedding_dim': 4" in printed and (tmp_path / "model.pt").is_file()


def test_the_section_for_your_own_data_reads_the_table_that_it_describes(tmp_path: Path) -> None:
    block, _ = blocks("data/README.md", "yaml")
    project = Project(tmp_path, **yaml.safe_load(block), **SMALL)
    rng = np.random.default_rng(0)
    rows = [f"{i % 2},c{rng.integers(9)},{i % 50},sports|travel,{1_700_000_000 + 3600 * i}" for i in range(400)]
    with gzip.open(tmp_path / "data/clicks.csv.gz", "wt") as file:
        file.write("\n".join(["clicked,country,age,interests,at", *rows]) + "\n")
    project.run("check", "ingest", "encode")
    fields = {field["name"]: field for field in project.read("encoded/schema.json")["fields"]}
    assert list(fields) == ["country", "age", "interests", "at_hour", "at_weekday"]
    assert fields["interests"]["width"] > 1


def test_the_section_for_a_shop_reads_the_log_that_it_describes(tmp_path: Path) -> None:
    _, block = blocks("data/README.md", "yaml")
    project = Project(tmp_path, **yaml.safe_load(block), encode__split__by="time")
    rows = [f"{i},purchase,o{i // 2},u{i % 9},FR,s{i % 7},red mug,{i % 7}.5" for i in range(400)]
    with gzip.open(tmp_path / "data/shop.csv.gz", "wt") as file:
        file.write("\n".join(["at,type,order,customer,country,sku,title,price", *rows]) + "\n")
    project.run("ingest", "encode")
    fields = {field["name"]: field.get("role") for field in project.read("encoded/schema.json")["fields"]}
    roles = {"customer": "user", "country": "user", "sku": "item", "title": "item", "price": "item"}
    assert fields == roles | {"event": "event", "event_age": "event"}


EXTENSION = re.compile(r"# (pipeline/(\w+)/\w+\.py)\n")
WHOLE = f"""
import json, warnings
warnings.simplefilter("ignore")
from stages import {", ".join(("check", *STAGES))}
for stage in ({", ".join(("check", *STAGES))}):
    stage.run()
{{serving}}
model.eval()
values = {{{{"served": logits.tolist(), "model": model(torch.from_numpy(ids)).tolist()}}}}
print(json.dumps(values))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """A copy of the checkout with the files of extending.md, after all stages and the code of serving.md."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks("docs/extending.md", "python"):
        begins = EXTENSION.match(block)
        assert begins, block
        (folder / begins[1]).write_text(block)
    (settings,) = blocks("docs/extending.md", "yaml")
    Project(folder, link=False, **yaml.safe_load(settings), **SMALL).give(
        retrain__epochs=15, retrain__batch_size=200, retrain__schedule="constant"
    )
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 1500), rng.integers(0, 20, 1500)
    stars = 3 + rng.normal(size=30)[users] + rng.normal(size=20)[items]
    rows = [f"u{user},i{item},{star:.3f}" for user, item, star in zip(users, items, stars, strict=True) if star > 0]
    (folder / "data/stars.csv").write_text("\n".join(["user,item,stars", *rows]) + "\n")
    (serving,) = blocks("docs/serving.md", "python")
    environment = {**os.environ, "PIPELINE_TRACKING": "journal", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WHOLE.format(serving=serving)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_the_four_examples_of_extending_run_through_all_stages(extended: tuple[Path, Any]) -> None:
    folder, _ = extended
    written = [EXTENSION.match(block) for block in blocks("docs/extending.md", "python")]
    assert sorted(begins[2] for begins in written if begins) == sorted(FOLDERS)
    report = json.loads((folder / "artifacts/report.json").read_text())
    used = (report["dataset"], report["task"], report["method"], report["backbone"])
    assert used == ("stars", "squared_error", "by_size", "linear")
    searched = report["allocations"]["searched"]
    assert searched["metrics"]["minus_mse"]["mean"] > -0.1  # the labels have a variance of about 2
    assert searched["bytes"] <= report["allocations"]["full"]["bytes"] / 4
    assert {entry["covers"] for entry in report["comparisons"]} & {"seeds and test rows"}


def test_the_code_for_serving_serves_what_the_model_predicts(extended: tuple[Path, dict[str, list[float]]]) -> None:
    folder, values = extended
    assert (folder / "model.safetensors").is_file()
    np.testing.assert_allclose(values["served"], values["model"], atol=0.1)  # int8
    assert np.std(values["model"]) > 0.5
