"""Live comparison with torch and transformers; without them, no test is collected."""

import importlib.util

import pytest

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

THIRD_PARTY = (  # warnings of their own; every other warning is still an error
    "ignore::DeprecationWarning:torch",
    "ignore::DeprecationWarning:transformers",
    "ignore::FutureWarning:transformers",
    "ignore::DeprecationWarning:huggingface_hub",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY:
        config.addinivalue_line("filterwarnings", line)


def pytest_report_header() -> str | None:
    if MISSING:
        return f"no parity tests without {', '.join(MISSING)}: pip install '.[parity]'"
    return None
