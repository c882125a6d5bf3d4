"""Writes a model as MLflow serves it. Only this file and `store` import MLflow."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.tracking.place import EXPERIMENT, StoreError, masked, meeting_mlflow, store_uri
from pipeline.tracking.store import Store

PACKAGES = ("numpy", "pandas", "psutil", "pyarrow", "pydantic", "ruamel.yaml", "safetensors", "scipy", "torch", "tqdm")


def write_pyfunc(
    folder: Path, loader: str, data: Path, code: Path, example: pd.DataFrame, answers: Sequence[str]
) -> None:
    """Write a folder that ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` take.

    Args:
        folder: to write; empty, or not there yet.
        loader: name of the module whose ``_load_pyfunc`` loads the model.
        data: file or folder that it loads; copied.
        code: folder of the package of the loader; copied, so that the model needs no checkout.
        example: of the input. Its columns are the signature: texts, or numbers.
        answers: names of the columns of the output, numbers.
    """
    with meeting_mlflow():
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        kinds = {name: "double" if pd.api.types.is_float_dtype(example[name]) else "string" for name in example}
        inputs = Schema([ColSpec(kind, str(name)) for name, kind in kinds.items()])
        mlflow.pyfunc.save_model(
            path=folder,
            loader_module=loader,
            data_path=str(data),
            code_paths=[str(code)],
            pip_requirements=[f"{name}=={_public_version(name)}" for name in PACKAGES],
            signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec("float", name) for name in answers])),
            input_example=example,
        )


def register(folder: Path, name: str, about: str, root: Path) -> str:
    """Make an MLflow model the next version of a registered model in the store of this project; return the version.

    Args:
        folder: that `write_pyfunc` wrote.
        name: of the registered model.
        about: description of the version.
        root: the repository.

    Raises:
        StoreError: if the store does not answer, or refuses the model.
    """
    with meeting_mlflow():
        try:
            return Store(root, EXPERIMENT).register(folder, name, about)
        except StoreError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            text = " ".join(str(masked(str(error))).split())[:200]
            raise StoreError(f"MLflow at {masked(store_uri(root))} does not register {name!r}: {text}") from None


def _public_version(package: str) -> str:
    """Without a local part as in 2.13.0+cpu, which no registry has."""
    return importlib.metadata.version(package).partition("+")[0]
