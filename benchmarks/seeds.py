"""How often boxless compare says "better" where nothing differs, and where a start gains 2 AP, by the number of seeds.

python benchmarks/seeds.py

Cells are drawn, not trained: AP has a spread of 1 over seeds, half of its variance shared by all starts of a seed
(its labels), so that a gain has a spread of 1 AP too. Prints the table of docs/guide/how-much.md.
"""

from collections.abc import Sequence

import numpy as np

from boxless.tasks.compare_table import REFERENCE, Cell, Row, summarize

FAMILIES = ((1, 1), (2, 1), (2, 3), (12, 1))
"""Numbers of starts beside scratch, and of amounts of labels."""
SEEDS = (2, 3, 5)
SPREAD = 0.01  # 1 AP


def drawn(
    random: np.random.Generator,
    starts: int,
    amounts: int,
    seeds: int,
    gain: float,
    scales: Sequence[float] = (1.0,),
    scratch: float = 1.0,
) -> list[Row]:
    """The rows of one comparison whose starts all gain `gain`.

    `scales` multiply the spread, amount by amount; `scratch` that of training from scratch alone.
    """
    cells = []
    for amount in range(amounts):
        scale = SPREAD * scales[amount % len(scales)] * 0.5**0.5
        shared = random.normal(size=seeds) * scale
        for start in range(starts + 1):
            own = scale if start else scale * scratch
            scores = 0.3 + shared + random.normal(size=seeds) * own + gain * (start > 0)
            name = f"start-{start}" if start else REFERENCE
            cells += [
                Cell("detector", name, (amount + 1) / amounts, 10, seed, {"AP": float(ap)}, 1.0)
                for seed, ap in enumerate(scores)
            ]
    return summarize(cells)


def wrongly_better(
    starts: int, amounts: int, seeds: int, repeats: int, scales: Sequence[float] = (1.0,), scratch: float = 1.0
) -> float:
    """Share of comparisons that call any start better though none is."""
    random = np.random.default_rng(0)
    wrong = [
        any(row.verdict == "better" for row in drawn(random, starts, amounts, seeds, 0.0, scales, scratch))
        for _ in range(repeats)
    ]
    return float(np.mean(wrong))


def found(starts: int, amounts: int, seeds: int, repeats: int) -> float:
    """Share of gains of 2 AP that are called better."""
    random = np.random.default_rng(1)
    verdicts = [
        row.verdict == "better"
        for _ in range(repeats)
        for row in drawn(random, starts, amounts, seeds, 0.02)
        if row.gain is not None
    ]
    return float(np.mean(verdicts))


def main() -> None:
    """Print the table."""
    print("| starts beside scratch | amounts of labels | wrongly better | a gain of 2 AP found |\n" + "|---" * 4 + "|")
    for starts, amounts in FAMILIES:
        wrong = ", ".join(f"{wrongly_better(starts, amounts, seeds, 2000):.1%}" for seeds in SEEDS)
        right = ", ".join(f"{found(starts, amounts, seeds, 500):.0%}" for seeds in SEEDS)
        print(f"| {starts} | {amounts} | {wrong} | {right} |")
    uneven = ", ".join(f"{wrongly_better(2, 3, seeds, 2000, (1.0, 3.0)):.1%}" for seeds in SEEDS)
    print(
        f"\nwrongly better where gains vary by 1 and 3 AP on different amounts of labels, 2 starts, 3 amounts: {uneven}"
    )
    for starts in (2, 12):
        noisy = ", ".join(f"{wrongly_better(starts, 1, seeds, 2000, scratch=2.0):.1%}" for seeds in SEEDS)
        print(f"wrongly better where scratch varies by twice as much, {starts} starts: {noisy}")


if __name__ == "__main__":
    main()
