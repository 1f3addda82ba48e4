"""The table of what fits on a device: the longest text of each model with each method, in a terminal and as a page."""

from collections.abc import Iterable, Mapping, Sequence

from ftkit.records.fits import Fit
from ftkit.report.pages.templates import fill_page
from ftkit.units import format_bytes

Rows = Mapping[str, Mapping[str, Fit]]
"""Model to method to what fits."""
_MARKS = {"none": "", "cheap": " c", "layer": " r"}
LEGEND = (
    "The longest text in tokens, one text at a time, and tokens a second at best. *: all that the model reads. "
    "c: layers recompute what is cheap; r: they recompute all. -: not even the shortest fits. ?: cannot be told."
)


def by_device(fits: Iterable[Fit]) -> dict[str, dict[str, dict[str, Fit]]]:
    """Return what fits by device, model and method, in the order in which it comes."""
    tables: dict[str, dict[str, dict[str, Fit]]] = {}
    for fit in fits:
        tables.setdefault(fit.device, {}).setdefault(fit.model, {})[fit.method] = fit
    return tables


def cell(fit: Fit) -> str:
    """Return what fits in a few characters, which `LEGEND` explains."""
    if fit.length is None:
        return "-" if fit.is_told else "?"
    mark = "*" if fit.length == fit.longest else ""
    speed = "" if fit.tokens_per_second is None else f"  {_speed(fit.tokens_per_second)}"
    return f"{fit.length:,}{mark}{_MARKS[fit.recompute or 'none']}{speed}"


def fit_lines(rows: Rows, methods: Sequence[str]) -> list[str]:
    """Return the table as lines of text, with what cannot be told below it."""
    wide = max(map(len, ("model", *rows)))
    lines = [f"{'model':{wide}}" + "".join(f"  {method:>20}" for method in methods)]
    lines += [
        f"{model:{wide}}" + "".join(f"  {cell(found[method]):>20}" for method in methods)
        for model, found in rows.items()
    ]
    return [*lines, LEGEND, *unknown_lines(rows)]


def unknown_lines(rows: Rows) -> list[str]:
    """Return what cannot be told, with its reasons."""
    return [f"? {model}, {names}: {reason}" for (model, reason), names in _unknown(rows).items()]


def fits_page(tables: Mapping[str, Rows], methods: Sequence[str]) -> str:
    """Return one table or several as HTML.

    Args:
        tables: heading to what fits, of every method for each model.
        methods: the columns.

    Returns:
        A document that asks the network for nothing and whose texts are all escaped.
    """
    return fill_page(
        "fits",
        title=next(iter(tables)) if len(tables) == 1 else "What fits",
        tables=tables,
        methods=methods,
        cell=cell,
        words=words,
        legend=LEGEND,
        unknown={key: names for rows in tables.values() for key, names in _unknown(rows).items()},
    )


def words(fit: Fit) -> str:
    """Say of a cell what it needs, and what is in the way of more."""
    peak = "" if fit.peak_process_bytes is None else f"{format_bytes(fit.peak_process_bytes)} at the peak"
    more = "" if fit.reason is None else f"a longer one {fit.reason}" if fit.length else fit.reason
    return "; ".join(filter(None, (peak, more)))


def _speed(tokens_per_second: float) -> str:
    """Return a rate in four characters or so: predictions are no finer than that."""
    if tokens_per_second < 1000:
        return f"{tokens_per_second:.0f}/s"
    if tokens_per_second < 1e6:
        return f"{tokens_per_second / 1e3:.0f}k/s"
    return f"{tokens_per_second / 1e6:.1f}M/s"


def _unknown(rows: Rows) -> dict[tuple[str, str], str]:
    """Return the methods of which nothing can be told, by model and reason."""
    found: dict[tuple[str, str], str] = {}
    for model, row in rows.items():
        for method, fit in row.items():
            if not fit.is_told:
                key = model, fit.reason or ""
                found[key] = f"{found[key]}, {method}" if key in found else method
    return found
