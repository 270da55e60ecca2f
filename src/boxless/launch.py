"""Processes of a run, from the environment variables of `torchrun` or SLURM's `srun`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from boxless.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    Attributes:
        launcher: program that started them; None for a single process.
        rank: number of this process, 0 for the first.
        world: number of processes.
        local_world: number of processes on this machine, the same on each machine.
    """

    launcher: Literal["torchrun", "srun"] | None = None
    rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def machines(self) -> int:
        """Number of machines."""
        return self.world // self.local_world

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Processes":
        """Read the environment variables of a launcher.

        Raises:
            UserError: if some are missing.
        """
        if int(environment.get("WORLD_SIZE", 1)) > 1:
            return _of_torchrun(environment)
        # Of a batch script without srun there is one process, whatever its number of tasks; it has no step of its own.
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return _of_srun(environment)
        return Processes()


def _of_torchrun(environment: Mapping[str, str]) -> Processes:
    missing = [name for name in _TORCHRUN if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} without {', '.join(missing)}: start the processes with torchrun, "
            "which sets them all, or unset WORLD_SIZE"
        )
    world = int(environment["WORLD_SIZE"])
    local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
    _check_even(world, local_world, "torchrun: --nproc-per-node")
    return Processes("torchrun", int(environment["RANK"]), world, local_world)


def _of_srun(environment: Mapping[str, str]) -> Processes:
    world = int(environment["SLURM_STEP_NUM_TASKS"])
    if "SLURM_NTASKS_PER_NODE" not in environment:
        raise UserError(
            f"srun: {world} tasks, but not how many on each machine; give --ntasks-per-node in place of --ntasks"
        )
    local_world = int(environment["SLURM_NTASKS_PER_NODE"])
    _check_even(world, local_world, "srun: --ntasks-per-node")
    return Processes("srun", int(environment["SLURM_PROCID"]), world, local_world)


def _check_even(world: int, local_world: int, key: str) -> None:
    if world % local_world:
        raise UserError(f"{key}: {local_world} of {world} processes on this machine; each must have the same number")
