.PHONY: help check fast test quickstart ci

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

check:  ## lint, format, layering
	ruff check . && ruff format --check . && pytest tests/test_layering.py

fast:  ## tests without real weights and extra processes (under 3 minutes)
	pytest -m "not slow"

test:  ## all tests
	pytest

quickstart:  ## both quickstarts
	hf-sft run recipes/quickstart.yaml && hf-sft run recipes/quickstart_text.yaml

ci:  ## what the gate runs
	.ci/run
