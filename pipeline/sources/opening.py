"""Opens the data set that the parameters name."""

from __future__ import annotations

from pathlib import Path

from pipeline.sources.download import download
from pipeline.sources.source import NotFound, Source
from pipeline.workflow.params import Dataset
from pipeline.workflow.places import root, work
from pipeline.workflow.plug import plug
from pipeline.workflow.validation import checked_options


def opened(dataset: Dataset) -> Source:
    """The data set at its path, or downloaded from its publisher.

    Args:
        dataset: name, options, and path relative to the repository.

    Raises:
        ValueError: if an option is unknown or wrong, or, as `BadData`, if the data are wrong.
        NotFound: if the files are not there and there is no download.
    """
    module = plug("datasets", dataset.name)
    options = checked_options([module.read], dataset.options or {}, "params.yaml: dataset.options")
    place = root() / dataset.path
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())  # so messages show the path as the user wrote it
    try:
        source: Source = module.read(place, **options)
    except NotFound:
        if not hasattr(module, "DOWNLOAD") or not place.exists():
            raise
        source = module.read(download(**module.DOWNLOAD, folder=work("downloads")), **options)
    return source
