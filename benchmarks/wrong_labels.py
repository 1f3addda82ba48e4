"""Does the list of probably wrong labels find errors that were planted, and does cleanlab find more?

    python -m benchmarks.wrong_labels --seeds 3

5 % of 2,000 movie reviews get the other label. Both are given the same probabilities: out of five folds of logistic
regression on the features of the demo model. What is counted is how many of the planted errors are among as many
reviews as were planted, most suspicious first, so that precision and recall are one number; the reviews' own errors,
which nobody knows, count as mistakes of both. The second number is of ftkit's list as it is, however long.
"""

import argparse
from typing import Any

import numpy as np

from benchmarks.feature_extraction import features, settings_of
from ftkit.training.study.folds import as_problem, draw_folds, out_of_fold
from ftkit.training.study.wrong_labels import find_wrong

NUM_REVIEWS, SHARE = 2000, 0.05


def main() -> None:
    """Plant, look, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    settings = settings_of(argparse.Namespace(data="reviews", folder=None, samples=NUM_REVIEWS))
    data, made, _ = features(settings)
    for seed in range(asked.seeds):
        print(line(made["train"], data.train.labels, seed))


def line(vectors: Any, true: Any, seed: int) -> str:
    """Return what was found of the errors that a seed planted."""
    random = np.random.default_rng(seed)
    num_planted = round(SHARE * len(true))
    planted = random.choice(len(true), num_planted, replace=False)
    given = true.copy()
    given[planted] = 1 - given[planted]
    problem = as_problem(vectors, given, 2)
    found = out_of_fold(problem.apart, draw_folds(given, 5, seed))
    suspicions = find_wrong(found.probabilities_NC, given)
    first = np.argsort(suspicions.margins_N, kind="stable")[:num_planted]
    hits = np.isin(suspicions.places, planted).sum()
    accuracy = (found.probabilities_NC.argmax(axis=1) == true).mean()
    return (
        f"seed {seed}: {num_planted} of {len(true)} planted; accuracy against the true labels {accuracy:.3f}; "
        f"ftkit {np.isin(first, planted).mean():.3f} at the planted count; its whole list of {len(suspicions.places)}: "
        f"precision {hits / max(1, len(suspicions.places)):.3f}, recall {hits / num_planted:.3f}; "
        f"{cleanlab_line(found.probabilities_NC, given, planted)}"
    )


def cleanlab_line(probabilities: Any, given: Any, planted: Any) -> str:
    """Return what cleanlab finds, if it is installed."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return "cleanlab is not installed"
    first = np.argsort(get_label_quality_scores(given, probabilities), kind="stable")[: len(planted)]
    issues = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    hits = np.isin(issues, planted).sum()
    return (
        f"cleanlab {np.isin(first, planted).mean():.3f} at the planted count; its whole list of {len(issues)}: "
        f"precision {hits / max(1, len(issues)):.3f}, recall {hits / len(planted):.3f}"
    )


if __name__ == "__main__":
    main()
