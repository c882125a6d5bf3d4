"""What a piece of code computes is named by all the files it runs, packages included."""

from pathlib import Path

import pytest

from pipeline.workflow import code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: a imports b, which imports the package c.d; e stands alone."""
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code.imports.cache_clear()
    files = {
        "pipeline/__init__.py": "",
        "pipeline/a.py": "from pipeline.b import thing\nimport json\n",
        "pipeline/b.py": "def thing():\n    from pipeline.c import d\n    return d\n",
        "pipeline/c/__init__.py": "import pipeline.c.f\n",
        "pipeline/c/d.py": "",
        "pipeline/c/f.py": "from pipeline.tracking import t\n",
        "pipeline/e.py": "",
        "pipeline/tracking/__init__.py": "",
        "pipeline/tracking/t.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    code.imports.cache_clear()


def test_the_closure_sees_packages_and_imports_in_functions_and_leaves_out_tracking(project: Path) -> None:
    assert code.closure(["pipeline/a.py"]) == [
        "pipeline/__init__.py",
        "pipeline/a.py",
        "pipeline/b.py",
        "pipeline/c/__init__.py",
        "pipeline/c/d.py",
        "pipeline/c/f.py",
    ]


def test_a_key_changes_with_code_parameters_and_inputs_and_with_nothing_else(project: Path) -> None:
    schema = project / "schema.json"
    schema.write_text("{}")

    def key(**params: int) -> str:
        code.imports.cache_clear()
        return code.content_key(["pipeline/a.py"], {"x": 1, "y": 2, **params}, inputs=[schema])

    first = key()
    for unrelated in ("pipeline/e.py", "pipeline/tracking/t.py"):
        (project / unrelated).write_text("# another line\n")
    assert key() == first and len(first) == 20
    (project / "pipeline/c/__init__.py").write_text("import pipeline.c.f  # another line\n")
    second = key()
    schema.write_text('{"a": 1}')
    assert len({first, second, key(), key(x=2)}) == 4
