"""Live comparison with torch and transformers; nothing is collected where they are missing."""

import importlib.util

import pytest

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

THIRD_PARTY = (  # theirs to mend; everything else is still an error
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
        return f"parity tests left out: {', '.join(MISSING)} missing, pip install '.[parity]'"
    return None
