"""The explanation of a plan, as lines of text below the plan or as a key of its JSON."""

import json
from typing import TYPE_CHECKING, Any

from ftkit.report.planned.explained import explanation_lines

if TYPE_CHECKING:
    from ftkit.plan.predict import Grounds, Tapes


def explanation_text(grounds: "Grounds", tapes: "Tapes") -> str:
    """Return an explanation as lines of text.

    Args:
        grounds: the prediction, with what it was made of.
        tapes: what was traced for it.
    """
    from ftkit.plan.explain import explain, priced_changes

    return "\n".join(explanation_lines(explain(grounds, priced_changes(grounds, tapes))))


def explained_json(grounds: "Grounds", tapes: "Tapes") -> str:
    """Return a prediction as JSON that has its explanation under `explanation`.

    Args:
        grounds: the prediction, with what it was made of.
        tapes: what was traced for it.
    """
    from ftkit.plan.explain import explain, priced_changes

    tree: dict[str, Any] = grounds.prediction.model_dump(mode="json")
    explanation = explain(grounds, priced_changes(grounds, tapes))
    return json.dumps(tree | {"explanation": explanation.model_dump(mode="json")})
