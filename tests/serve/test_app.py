"""Test the application around its calls."""

from __future__ import annotations


def test_health_and_metrics(client):
    served = client()
    assert served.get("/health").json() == {"status": "ready"}
    assert "omnikit_sessions 0.0" in served.get("/metrics").text
    assert served.get("/").text.startswith("<!doctype html>")
    assert served.get("/nothing").status_code == 404
