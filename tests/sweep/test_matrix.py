"""Every method under every engine, a step each, by `ftkit train`."""

import pytest

from ftkit.config.methods import methods
from ftkit.sweep import matrix


def test_what_is_refused_before_it_runs_has_its_reason(monkeypatch):
    monkeypatch.setattr(matrix, "ENGINES", {"both": {"engine.name": "plain", "engine.zero_stage": "2"}})
    tried = list(matrix.try_all())
    assert [one.method for one in tried] == list(methods())
    assert all("ZeRO, offload or a template on the plain engine" in one.reason for one in tried)


@pytest.mark.slow
@pytest.mark.e2e
def test_every_method_trains_under_every_engine():
    tried = list(matrix.try_all())
    assert [(one.method, one.engine) for one in tried] == [(a, b) for a in methods() for b in matrix.ENGINES]
    assert [one.reason for one in tried] == [None] * len(tried)
