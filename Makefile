# One-line targets; CI calls the same ones. Everything lives in .venv of this checkout.
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin

.PHONY: demo serve studio test check bench browser fleet docs clean

demo: .venv/installed ## images, tables and reports: full models against accelerated ones
	$(BIN)/swiftmask demo --model meissonic-emoji --prompts data/emoji/prompts-demo.jsonl \
		--scorer reader=emoji-judge --out demo/meissonic-emoji
	$(BIN)/swiftmask demo --out demo/maskgit-scenes
	$(BIN)/swiftmask demo --model mar-scenes --out demo/mar-scenes

serve: .venv/installed ## images over HTTP on port 8000 (docs/serving.md)
	$(BIN)/swiftmask serve maskgit-scenes --shortcut auto

studio: .venv/studio ## a page that compares the full and the accelerated model, on http://127.0.0.1:8000/studio
	$(BIN)/swiftmask studio meissonic-emoji --report docs/reports/meissonic-emoji/report.html

test: .venv/installed ## the test-suite, CPU only, and the rehearsal of a GPU in a process of its own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) tests/rehearsal

check: .venv/installed ## formatting, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright --project .

bench: .venv/installed ## the tables of the README
	$(BIN)/swiftmask bench maskgit-scenes --dtype bfloat16 --steps 4 6 8 12 16 24 32 --budgets 16:4 16:6

browser: .venv/installed .venv/studio ## what the tests of the pages need, beside a Chromium on the PATH
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,browser]'

fleet: .venv/ray ## the tests of fleets, on two workers of Ray; `make test` skips them without Ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fleet tests/serve/test_replicas.py

docs: .venv/installed ## picture sheets and plots of docs/
	$(BIN)/python tools/scenes_sheet.py

clean: ## removes what the other targets made (not the environment)
	rm -rf demo report .pytest_cache .ruff_cache

.venv/ray: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

.venv/studio: .venv/installed studio-requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement studio-requirements.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
