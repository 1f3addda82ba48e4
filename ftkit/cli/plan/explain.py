"""The explanation of a plan, and the plan's JSON that has it as a key."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.plan.predict import Grounds, Tapes
    from ftkit.records.explained import Explanation


def explained(grounds: "Grounds", tapes: "Tapes") -> "Explanation":
    """Return what a plan rests on.

    Args:
        grounds: the prediction, with what it was made of.
        tapes: what was traced for it.
    """
    from ftkit.plan.explain import explain, priced_changes

    return explain(grounds, priced_changes(grounds, tapes))


def explained_json(grounds: "Grounds", tapes: "Tapes") -> str:
    """Return a prediction as JSON that has its explanation under `explanation`.

    Args:
        grounds: the prediction, with what it was made of.
        tapes: what was traced for it.
    """
    tree: dict[str, Any] = grounds.prediction.model_dump(mode="json")
    return json.dumps(tree | {"explanation": explained(grounds, tapes).model_dump(mode="json")})
