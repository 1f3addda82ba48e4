"""The table of what fits: short cells, reasons below, and hostile texts that stay texts."""

from ftkit.records.fits import Fit
from ftkit.report.pages.fits import by_device, fit_lines, fits_page

FITS = [
    Fit(model="small", method="lora", longest=1024, length=1024, recompute="none", tokens_per_second=27_100.0),
    Fit(model="small", method="full", longest=1024, length=512, recompute="layer", reason="needs 9 GiB of 8 GiB"),
    Fit(model="<b>odd</b>", method="lora", reason="its code <script>reads</script> values back", is_told=False),
    Fit(model="<b>odd</b>", method="full", longest=64, reason="its weights alone are 20 GiB"),
]


def test_a_row_has_the_longest_text_of_each_method_and_what_cannot_be_told_is_said_below():
    lines = fit_lines(by_device(FITS)[""], ["lora", "full"])
    assert lines[1].split() == ["small", "1,024*", "27k/s", "512", "r"]
    assert lines[2].split() == ["<b>odd</b>", "?", "-"]
    assert lines[-1] == "? <b>odd</b>, lora: its code <script>reads</script> values back"


def test_the_page_has_the_same_table_with_every_text_escaped():
    page = fits_page({"on a <T4>": by_device(FITS)[""]}, ["lora", "full"])
    assert "1,024*  27k/s" in page
    assert "on a &lt;T4&gt;" in page
    assert "<script>" not in page
    assert "<b>odd" not in page
    assert "a longer one needs 9 GiB of 8 GiB" in page


def test_several_cards_have_a_table_each():
    fits = [fit.model_copy(update={"device": card}) for fit in FITS for card in ("T4", "L4")]
    tables = by_device(fits)
    assert list(tables) == ["T4", "L4"]
    page = fits_page(tables, ["lora", "full"])
    assert page.count("<table") == 2
    assert "<h2>L4</h2>" in page
