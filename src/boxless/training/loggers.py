"""Weights & Biases and MLflow, by Lightning's loggers. Nothing leaves the machine unless the user has asked for it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxless.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger


def make_loggers(names: Sequence[str], folder: Path, recipe: dict[str, Any]) -> "list[Logger]":
    """The named loggers (wandb, mlflow) of a run in `folder`, with its recipe, nested.

    Their files go into the run's folder. W&B sends them only with WANDB_MODE=online, MLflow only where
    MLFLOW_TRACKING_URI names a server.

    Raises:
        UserError: where the library is missing.
    """
    loggers = [_LOGGERS[name](folder) for name in dict.fromkeys(names)]
    for logger in loggers:
        logger.log_hyperparams(recipe)
    return loggers


def _wandb(folder: Path) -> "Logger":
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the library is loaded
    _need("wandb")
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") != "online"
    return WandbLogger(
        folder.name, save_dir=folder, offline=offline, project=os.environ.get("WANDB_PROJECT", "boxless")
    )


def _mlflow(folder: Path) -> "Logger":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _need("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve()}/mlflow.db")
    return MLFlowLogger("boxless", run_name=folder.name, tracking_uri=where)


_LOGGERS = {"wandb": _wandb, "mlflow": _mlflow}


def _need(library: str) -> None:
    try:
        __import__(library)
    except ImportError as error:
        raise UserError(f"loggers={library}: is not installed; pip install 'boxless[{library}]'") from error
