"""Proposals that a pretraining learns from: found, or made."""

import socket
import time
from pathlib import Path

from boxless.data.index import ImageIndex
from boxless.data.unlabelled import Proposals
from boxless.errors import UserError
from boxless.proposals.baselines import Grid, RandomBoxes
from boxless.proposals.generate import Method as ProposalMethod
from boxless.proposals.generate import make_proposals, settings_of
from boxless.proposals.selective_search import PRESETS
from boxless.proposals.table import ProposalTable, settings_hash
from boxless.recipes.schema import PretrainRecipe
from boxless.training.distributed import rank
from boxless.training.progress import say


def prepare_boxes(index: ImageIndex, recipe: PretrainRecipe, out: Path, quiet: bool) -> Proposals:
    """The proposals of the images: the given table, those in shards, or a table beside the run, made now if need be.

    The last lies beside the run's folder, named after its settings, so that other runs on the same data find it.
    """
    if recipe.proposals.file is not None:
        return ProposalTable.open(recipe.proposals.file).aligned_to(index)
    method = proposal_method(recipe)
    if index.packed and (inside := _in_shards(index, method, quiet)):
        return inside
    workers = None if recipe.workers is None else max(1, recipe.workers)  # 0 trains without workers; 1 proposes so
    file = proposal_file(index, recipe, out)
    if rank() > 0:  # the first process has made it
        return ProposalTable.open(_wait_for(file)).aligned_to(index)
    return make_proposals(index, file, method, workers, quiet).table.aligned_to(index)


def _in_shards(index: ImageIndex, method: ProposalMethod, quiet: bool) -> Proposals | None:
    from boxless.data.shards.read import ShardIndex

    if not isinstance(index, ShardIndex) or index.proposals is None:
        return None
    if index.proposals != settings_of(method):
        found = index.proposals.get("method")
        say(f"proposals: those in the shards ({found}), not as the recipe has them", quiet)
    return index


def _wait_for(file: Path) -> Path:
    """The file that another process has written, once this machine sees it.

    Raises:
        UserError: if it does not.
    """
    for _ in range(60):  # network file systems tell of new files late
        if file.exists():
            return file
        time.sleep(1)
    raise UserError(
        f"{file}: the first process wrote it, but machine {socket.gethostname()} does not see it; choose an --out that "
        "all machines see, or set proposals.file"
    )


def proposal_method(recipe: PretrainRecipe) -> ProposalMethod:
    """Generator of the boxes."""
    methods: dict[str, ProposalMethod] = {
        "selective_search": PRESETS[recipe.proposals.preset],
        "grid": Grid(),
        "random": RandomBoxes(),
    }
    return methods[recipe.proposals.method]


def proposal_file(index: ImageIndex, recipe: PretrainRecipe, out: Path) -> Path:
    """Path of these images' boxes: the given table, or one beside the run's folder."""
    if recipe.proposals.file is not None:
        return Path(recipe.proposals.file)
    settings = settings_hash(settings_of(proposal_method(recipe)))
    return out.parent / f"proposals-{settings[:8]}-{index.content[:8]}.parquet"
