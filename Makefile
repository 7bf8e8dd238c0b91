# TokenCompose in notebooks. `make reproduce` runs the miniature paper, `make test` all tests, `make lab` opens JupyterLab.
PYTHON  ?= python3
PROFILE ?= quick
# tables and figures to make (FIGURES="table1 figure5"), the profile's own when empty; quick stays short by leaving out Table 1 and its rivals
FIGURES ?=
# the training seed of make row
SEED    ?= 0
# training seeds of make rows, all when empty
SEEDS   ?=
# of a GPU hour, for make plan
PRICE   ?= 2
CORES   ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)
VENV    := .venv
BIN     := $(VENV)/bin
# one trained or sampled model a GPU; without a GPU the cores are the limit
GPUS    := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
GPU_LIMIT := $(if $(filter-out 0,$(GPUS)),--resources gpu=$(GPUS))
# glibc hands large buffers back to the system at every step otherwise, which can double the time of a small model
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 4294967296
# what Python compiles it keeps: without, every job would compile all libraries again
export PYTHONDONTWRITEBYTECODE :=
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup plan reproduce row rows records publish results docs push test lab clean-notebooks

help:
	@echo 'make reproduce                          the miniature paper at profile quick (PROFILE=mini: the long run)'
	@echo 'make row TABLE=2 ROW=token PROFILE=mini one row of a table with one training seed (SEED=0), and its record'
	@echo 'make rows PROFILE=mini                  every row of every table, one after the other, each with its record (SEEDS="0 1")'
	@echo 'make plan PROFILE=sd14                 what would run, GPU hours and money (PRICE=2 an hour), counted'
	@echo 'make records PROFILE=mini               what a run has finished into paper_figures/records/'
	@echo 'make publish PROFILE=mini               its executed notebooks too'
	@echo 'make results                            RESULTS.md and the table of README.md from the committed records'
	@echo 'make docs                               the site, from notebooks, tables, RESULTS.md and the code, into _docs/'
	@echo 'make push REPO=name/model MODEL=folder  what would go to the hub, with its card (YES=1 uploads, PUBLIC=1 for all to see)'
	@echo 'make test                               notebook tests and pytest'
	@echo 'make lab                                JupyterLab in the environment'

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q -p $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install -q -p $(BIN)/python --no-deps -e .
	@touch $@

GRAPH = $(BIN)/snakemake --quiet rules --rerun-triggers mtime params input --cores $(CORES) $(GPU_LIMIT) --nolock --rerun-incomplete
RECORDS = $(BIN)/python -m tokencompose.reporting.records
# committed records that are what this profile would make today count as done; the data set's annotations say whether they are
ADOPT = if [ -d paper_figures/records/$(PROFILE) ]; then $(GRAPH) pictures --config profile=$(PROFILE) && $(RECORDS) adopt --profile $(PROFILE); fi

reproduce: setup
	@$(ADOPT)
	$(GRAPH) --config profile=$(PROFILE) figures="$(FIGURES)"
	@cat $$(ls runs/$(PROFILE)/paper_figures/table*.txt 2>/dev/null) /dev/null
	@echo 'Made:' && ls -d runs/$(PROFILE)/paper_figures/*

row: setup
	@[ -n "$(TABLE)$(FIGURE)" ] && [ -n "$(ROW)" ] || { echo 'Say which: make row TABLE=2 ROW=token SEED=0 PROFILE=mini (or FIGURE=4).'; exit 2; }
	@$(ADOPT)
	$(GRAPH) row --config profile=$(PROFILE) figures="$(if $(TABLE),table$(TABLE),figure$(FIGURE))" row=$(ROW) seed=$(SEED)
	$(RECORDS) keep --profile $(PROFILE) --run $$($(BIN)/python -c "from tokencompose.methods import run_name; print(run_name('$(ROW)', $(SEED)))")

rows: setup
	@$(ADOPT)
	$(GRAPH) rows --config profile=$(PROFILE) figures="$(FIGURES)" seeds="$(SEEDS)" rows=1

plan: setup  # counted from shapes; nothing runs
	@$(BIN)/python -m tokencompose.plan --profile $(PROFILE) --figures "$(FIGURES)" --row "$(ROW)" --price $(PRICE)

records: setup  # the results a run has finished so far, small, to be committed
	$(RECORDS) keep --profile $(PROFILE)

publish: records  # and its executed tables and figures, cleaned
	for nb in runs/$(PROFILE)/paper_figures/*.ipynb; do $(BIN)/python -c "import sys; from tokencompose.reporting.publish import publish; publish(*sys.argv[1:])" $$nb paper_figures/executed/$$(basename $$nb); done
	$(BIN)/nbdev_clean --fname paper_figures/executed
	if [ -f runs/$(PROFILE)/paper_figures/figure4_wide.jpg ]; then cp runs/$(PROFILE)/paper_figures/figure4_wide.jpg paper_figures/executed/figure4_$(PROFILE).jpg; fi  # for the README

results: setup  # RESULTS.md and the table of README.md, from the committed records
	$(BIN)/python -m tokencompose.reporting.pages

docs: setup  # runs no notebook, asks no network
	$(BIN)/python -m tokencompose.reporting.site

# the trained folder that goes to the hub
MODEL   ?= runs/mini/train/tokencompose-seed0
push: setup
	@[ -n "$(REPO)" ] || { echo 'Say where to: make push REPO=name/model MODEL=runs/mini/train/tokencompose-seed0'; exit 2; }
	@$(BIN)/python -m tokencompose.reporting.card "$(MODEL)" --repo "$(REPO)" $(if $(filter 1,$(YES)),--yes) $(if $(filter 1,$(PUBLIC)),--public)

test: setup
	MPLBACKEND=agg OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	MPLBACKEND=agg OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lab: setup
	$(BIN)/nbdev_install_hooks
	$(BIN)/jupyter lab

clean-notebooks: setup
	for d in nbs data_prep paper_figures; do $(BIN)/nbdev_clean --fname $$d; done
