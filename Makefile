# `make demo` and `make test` need Python 3.10+ and make, nothing else. Each installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: install demo test test-runs test-others test-slow benchmark style quality clean
.DELETE_ON_ERROR:

# Installed again only when a requirements file changed.
$(VENV)/.installed: requirements.txt requirements-extra.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; say which with: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python toy_dataset.py
	$(BIN)/python run_segmentation.py --config configs/toy_overfit.yaml
	@$(BIN)/python -c 'import json; r = json.load(open("outputs/toy_overfit/all_results.json")); \
		print("mean IoU on the 10 training images: %.3f, on the 10 validation images: %.3f" \
		% (r["train_mean_iou"], r["eval_mean_iou"]))'
	@echo "the pictures: $(CURDIR)/outputs/toy_overfit/contact_sheet.png"
	@echo "the page of the run: $(CURDIR)/outputs/toy_overfit/report.html"

# Two processes, as a test uses one core, of about the same length: those that run whole programs, and all others.
# Those with the rendered dataset, which takes half a minute, are in one of them.
RUNS := tests/training tests/reports tests/test_notebook.py $(patsubst %,tests/test_%.py,app architectures export_onnx inputs_untouched predict \
	publish run_segmentation wide_images)
test: install
	$(MAKE) -j 2 -k test-runs test-others

test-runs:
	$(BIN)/python -m pytest $(RUNS) -m "not slow" -q

test-others:
	$(BIN)/python -m pytest tests $(RUNS:%=--ignore=%) -m "not slow" -q

# pytest ends with 5 where it finds no test: not a failure.
test-slow: install
	$(BIN)/python -m pytest tests -m slow || [ $$? -eq 5 ]

benchmark: install
	mkdir -p outputs
	$(BIN)/python benchmark.py all --json outputs/benchmark.json

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) outputs ADE20k_toy_dataset
