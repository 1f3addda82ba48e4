"""Whether one method is better than another, or lucky: differences of the same texts' answers, with interval and test.

Answers are paired by the hash of their text. The interval is that of the paired bootstrap over texts (Efron 1979), the
p-value McNemar's exact one (1947) where two runs are compared that are right or wrong, and that of a sign-flip
permutation test where a text has more than two scores: over several seeds, or how far a number is off.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ftkit.records.answers import Answers
from ftkit.report.answered import judged
from ftkit.report.collect import Run

Values = NDArray[np.float64]
Key = tuple[str, int]
"""The hash of a text, and which of the equal texts of a split it is."""

NUM_DRAWS = 10_000
_DRAWS_AT_ONCE = 500
_LEVEL = 0.05
_MOST_COMPARED = 8
"""More groups than this are compared with the best alone."""
_SEED = 0


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same texts.

    Attributes:
        first: the better one's name.
        second: the other's.
        figure: `accuracy`, `exact match` or `mean absolute error`.
        difference: how much better the first is, at least 0.
        low: of the 95 % interval of the difference.
        high: of it.
        p: of the test, Holm-corrected where more than two methods are compared.
        num_texts: in both.
        num_unpaired: in one of them alone.
        is_corrected: whether p is.
    """

    first: str
    second: str
    figure: str
    difference: float
    low: float
    high: float
    p: float
    num_texts: int
    num_unpaired: int
    is_corrected: bool = False

    def sentence(self) -> str:
        """Return the comparison as a sentence such as `A is better than B by 3.1 points (1.2 to 5.0), p = 0.004`."""
        shown = _errors if self.figure == "mean absolute error" else _points
        size = f"{shown(self.difference)}{self._unit()} ({shown(self.low)} to {shown(self.high)})"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}" if self.p < 0.1 else f"p = {self.p:.2f}"
        chance += " after Holm's correction" if self.is_corrected else ""
        among = f" on {self.num_texts:,} texts"
        among += f" ({self.num_unpaired:,} more are in one of them alone)" if self.num_unpaired else ""
        if self.p < _LEVEL:
            return f"{self.first} is better than {self.second} by {size}, {chance}{among}."
        decides = "" if self.low <= 0 <= self.high else "; the interval leaves 0 out, but the test decides"
        return f"{self.first} and {self.second} cannot be told apart: a difference of {size}, {chance}{among}{decides}."

    def _unit(self) -> str:
        return " of mean absolute error" if self.figure == "mean absolute error" else " points"


def compare_groups(groups: Mapping[str, Sequence[Run]]) -> list[Comparison]:
    """Compare methods two by two, of many the best one with each other.

    Args:
        groups: name of a method to its runs, one for each seed; those without answers are left out.

    Returns:
        The comparisons of methods that share a kind of labels and texts.
    """
    scored = {name: one for name, runs in groups.items() if (one := _scores(runs))}
    pairs = list(combinations(scored, 2))
    if len(scored) > _MOST_COMPARED:
        best = max(scored, key=lambda name: np.mean(list(scored[name][1].values())))
        pairs = [(best, name) for name in scored if name != best]
    found = [
        compared
        for one, other in pairs
        if scored[one][0] == scored[other][0] and (compared := _compare(one, other, scored[one], scored[other]))
    ]
    return _corrected(found) if len(scored) > 2 else found


def bootstrap(differences: Values, seed: int = _SEED) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, [N].

    Drawing N texts with replacement is drawing how often each distinct difference occurs: a multinomial, which is
    quick where differences are -1, 0 and 1.
    """
    values, counts = np.unique(differences, return_counts=True)
    draw, total = np.random.default_rng(seed), len(differences)
    at_once = max(1, min(_DRAWS_AT_ONCE, 2**22 // len(values)))
    means = np.concatenate(
        [
            draw.multinomial(total, counts / total, size=min(at_once, NUM_DRAWS - start)) @ values / total
            for start in range(0, NUM_DRAWS, at_once)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(num_first: int, num_second: int) -> float:
    """Return the exact two-sided p of McNemar's test.

    Args:
        num_first: texts that the first run alone has right.
        num_second: texts that the second alone has right.
    """
    total, fewer = num_first + num_second, min(num_first, num_second)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - total * math.log(2)) for log in logs))


def sign_flips(differences: Values) -> float:
    """Return the two-sided p of the test that flips the signs of paired differences, [N], by chance."""
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    draw, observed = np.random.default_rng(_SEED), abs(differences.sum()) * (1 - 1e-12)
    at_once = max(1, min(_DRAWS_AT_ONCE, 2**22 // len(differences)))
    num_beyond = sum(
        int((np.abs(_signs(draw, min(at_once, NUM_DRAWS - start), len(differences)) @ differences) >= observed).sum())
        for start in range(0, NUM_DRAWS, at_once)
    )
    return (num_beyond + 1) / (NUM_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number (Holm 1979), in the order that they came in."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = most
    return corrected


def _signs(draw: np.random.Generator, num_rows: int, num_columns: int) -> Values:
    return np.asarray(draw.integers(0, 2, size=(num_rows, num_columns)) * 2.0 - 1.0)


def _scores(runs: Sequence[Run]) -> tuple[str, dict[Key, float]] | None:
    """Return the figure that runs are compared by, and the mean score of each text that all of them answered."""
    answers = [found for run in runs if (found := judged(run)) is not None]
    if not answers or len({one.kind for one in answers}) > 1:
        return None
    scores = [_text_scores(one) for one in answers]
    shared = set.intersection(*(set(one) for one in scores))
    figures = {"single": "accuracy", "multi": "exact match", "regression": "mean absolute error"}
    return figures[answers[0].kind], {key: sum(one[key] for one in scores) / len(scores) for key in sorted(shared)}


def _text_scores(answers: Answers) -> dict[Key, float]:
    """Return the score of each text, more of which is better: right or wrong, or by how much a number is off."""
    right = -np.abs(answers.labels - answers.answers) if answers.kind == "regression" else answers.is_right
    seen: Counter[str] = Counter()
    scores = {}
    for text, score in zip(answers.texts, right.astype(float).tolist(), strict=True):
        scores[text, seen[text]] = score
        seen[text] += 1
    return scores


def _compare(
    one: str, other: str, mine: tuple[str, dict[Key, float]], theirs: tuple[str, dict[Key, float]]
) -> Comparison | None:
    figure, shared = mine[0], sorted(mine[1].keys() & theirs[1].keys())
    if not shared:
        return None
    differences = np.array([mine[1][key] - theirs[1][key] for key in shared])
    if differences.sum() < 0:
        one, other, differences = other, one, -differences
    is_two_valued = figure != "mean absolute error" and set(np.unique(differences)) <= {-1.0, 0.0, 1.0}
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        one,
        other,
        figure,
        float(differences.mean()),
        *bootstrap(differences),
        p=mcnemar(wins, losses) if is_two_valued else sign_flips(differences),
        num_texts=len(shared),
        num_unpaired=len(mine[1]) + len(theirs[1]) - 2 * len(shared),
    )


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    p_values = holm([one.p for one in found])
    return [replace(one, p=p, is_corrected=True) for one, p in zip(found, p_values, strict=True)]


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _errors(size: float) -> str:
    return f"{size:.3g}"
