# Slotwise: reinforcement learning with verifiable rewards on a scheduling problem.
# The whole experiment, in order:   make data sft grpo eval
#
# A setting NAME=value becomes the flag --name of the commands that a goal runs. `make help` lists goals
# and settings; ARGS='--flag value' hands on any further flag, `python -m package.module --help` explains.

PYTHON   ?= python3
JOBS     ?= 2
PY       := .venv/bin/python
PIP      := $(PY) -m pip install --quiet --disable-pip-version-check
GPU_HERE := $(shell command -v nvidia-smi)

# --- settings: which goal takes which ---------------------------------------------------------

experiment := RECIPE MODEL RUN BACKEND BITS FORCE
switches   := FORCE
hash  := \#
named := $(shell sed -n 's/^\([a-z-]*\):.*$(hash)$(hash) .*/\1/p' $(firstword $(MAKEFILE_LIST)))
# Goals that run no recipe; every other goal takes the settings of an experiment.
plain      := help setup lock calibrate base doctor score gallery wheel test check lint clean
# Goals that train, in several processes if asked.
launched   := sft grpo arms ablate elicit skills sick blog

takes_blog      := BLOG
takes_published := BLOG
takes_sample    := ARM
takes_mend      := ARM
takes_probe     := ARM
takes_try       := ARM DAY DATE RULE OUT
takes_export    := ARM
takes_plan      := GPU PRICE
takes_doctor    := RECIPE RUN LOG TRUTH
takes_base      := FROM OUT
takes_score     := PROBLEMS COMPLETIONS OUT
takes_calibrate := OUT
takes_wheel     := OUT

# The recipe: one of pipeline/recipes or a file of your own. Some goals are experiments of their own.
recipe_of_ablate := ablation
recipe_of_elicit := elicitation
recipe_of_skills := skills
recipe_of_sick   := sick
recipe_of_blog   := $(if $(GPU_HERE),blog-7b,blog-tiny)
recipe_of_published := $(recipe_of_blog)
RECIPE ?= pipeline/recipes/$(or $(strip $(foreach goal,$(MAKECMDGOALS),$(recipe_of_$(goal)))),tiny).yaml

takes  = $(if $(filter $(1),$(plain)),,$(experiment)) $(if $(filter $(1),$(launched)),LAUNCH) $(takes_$(1))
# $(call quoted,TEXT) may hold blanks and quotes; $(call flag,NAME) is " --name 'what was given'", or nothing.
quoted = '$(subst ','\'',$(1))'
lower  = $(shell echo $(1) | tr A-Z a-z)
flag   = $(if $($(1)), --$(call lower,$(1))$(if $(filter $(1),$(switches)),, $(call quoted,$($(1)))))
with   = $(foreach name,$(filter-out LAUNCH,$(call takes,$@)),$(call flag,$(name)))$(if $(ARGS), $(ARGS))

# A misspelt goal is told before the others run.
near = $(shell $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(*sys.argv[1:2], sys.argv[2:], 1))' \
    $(call quoted,$(1)) $(named))
$(foreach goal,$(filter-out $(named) .venv/% runs/% %.mk Makefile,$(MAKECMDGOALS)),$(error there is no goal \
    $(goal)$(patsubst %,; did you mean `make %`?,$(call near,$(goal))); `make help` lists them))

$(foreach name,$(switches),$(if $(filter-out 1,$($(name))),$(error $(name)=1 says it, and nothing else; leave out \
    $(name)=$($(name)))))

# A setting that no goal on the command line takes is a mistake, except what programs read from their
# environment (CUDA_VISIBLE_DEVICES=1).
goals := $(or $(MAKECMDGOALS),help)
known := PYTHON JOBS ARGS $(foreach goal,$(goals),$(call takes,$(goal)))
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(filter-out $(known) MAKE% -%,$(given)),$(if $(or $(findstring _,$(name)),$(if $($(name)),,empty),\
    $(filter-out 0,$(MAKELEVEL))),,$(error make $(goals) takes no $(name)=; `make help` lists the settings)))

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: $(named)

# --- set-up -----------------------------------------------------------------------------------
#: make setup PYTHON=python3.12

help: ## list the goals and settings
	@awk -F ':.*## ' '/^# --- / { group = $$0; gsub(/^# --- | -+$$/, "", group); heading = "\n" group "\n" } \
	    /^#: / { heading = heading "  e.g. " substr($$0, 4) "\n" } \
	    /^[a-z-]+:.*## / { printf "%s  make %-12s%s\n", heading, $$1, $$2; heading = "" }' $(MAKEFILE_LIST)
	@echo
	@echo 'Settings of every goal that runs a recipe:'
	@echo '  RECIPE=one of pipeline/recipes by name, or a file   MODEL=folder or hub id   RUN=name below runs/'
	@echo '  BACKEND=auto, unsloth or trl   BITS=4 or 16   FORCE=1 (redo)   ARGS=further flags'
	@echo "  LAUNCH='--config_file pipeline/accelerate/ddp.yaml --num_processes 4' trains in several processes"

setup: .venv/ready ## create .venv and install the pinned requirements (the others call it)

new_enough = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; PYTHON=python3.12 make $(or $(MAKECMDGOALS),setup) names another one")'

listed = $(shell sed -n 's/^$(hash)$(1) //p' requirements.txt)

.venv/ready: requirements.txt requirements.lock
	@$(new_enough)
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt -c requirements.lock
	$(PIP) --no-deps $(call listed,no-deps)
	$(if $(GPU_HERE),$(PIP) -c requirements.lock $(call listed,gpu))
	@touch $@

lock: ## pin everything that requirements.txt brings along (writes requirements.lock)
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	{ sed -n '1,/^$$/p' requirements.lock | grep '^#'; .venv-lock/bin/pip freeze | grep '==' | sed 's/+[a-z0-9.]*$$//'; } > .venv-lock/lock
	mv .venv-lock/lock requirements.lock && rm -rf .venv-lock

# --- the experiment ---------------------------------------------------------------------------
#: make data sft grpo eval report RECIPE=qwen2.5-0.5b

TRAIN = $(PY) -m$(if $(LAUNCH), pipeline.launch $(LAUNCH) -m)

data: setup ## make the problems: proven optimum, prompt, gold answer, dataset card
	$(PY) -m pipeline.check$(with)
	$(PY) -m data.make$(with)
	TOKENIZERS_PARALLELISM=true $(PY) -m pipeline.check --lengths$(with)

audit: setup ## score policies that cheat under the recipe's reward; fails where one is paid
	$(PY) -m rewards.audit$(with)

probe: setup ## has GRPO anything to work with? samples training prompts (ARM=sft, default base)
	$(PY) -m eval.probe$(with)

sft: setup ## supervised fine-tuning on gold answers
	$(TRAIN) pipeline.sft$(with)

grpo: setup ## reinforcement learning with verifiable rewards, once the reward passed its audit
	$(TRAIN) pipeline.grpo$(with)

arms: setup ## train every arm of the recipe, sft and grpo among them
	$(TRAIN) pipeline.arms$(with)

eval: setup ## sample every arm, judge the answers, report pass@k: elicited or learnt?
	$(PY) -m eval.sample$(with)
	$(PY) -m eval.judge$(with)
	$(PY) -m eval.elicitation$(with)
	$(PY) -m eval.thinking$(with)

sample: setup ## draw every arm's answers and no more (ARM=grpo)
	$(PY) -m eval.sample$(with)

report: setup ## one HTML page of everything, with real answers drawn as days
	$(PY) -m eval.report$(with)

mend: setup ## what do answers gain when the checker's violations come back? (ARM=grpo)
	$(PY) -m eval.mend$(with)

doctor: setup ## what is wrong with a training, running or finished? (RUN=name, or LOG=any log, TRUTH=its reward for right answers)
	$(PY) -m pipeline.doctor$(or $(call flag,LOG)$(call flag,RUN),$(call flag,RECIPE))$(call flag,TRUTH)$(if $(ARGS), $(ARGS))

# --- a trained model, and one's own data ------------------------------------------------------
#: make try DAY=calendar.ics DATE=2026-03-02

try: setup ## the best plan for your own day, and a model's answer (DAY=cal.ics DATE=2026-03-02 RULE='at_most 4' OUT=plan.ics)
	$(PY) -m eval.try$(with)

export: setup ## a trained model as a folder for others, with its card (ARM=grpo)
	$(PY) -m eval.export$(with)

score: setup ## judge anyone's completions (PROBLEMS=p.jsonl COMPLETIONS=c.jsonl)
	$(PY) -m eval.score$(with)

plan: setup ## will it fit, how long, what does it cost? before any weights load (MODEL=… GPU=h100 PRICE=2.50)
	$(PY) -m pipeline.plan$(with)

gpu-check: setup ## a dry run of your recipe: seconds a step and peak memory beside `make plan`
	$(PY) -m pipeline.gpu_check$(with)

# --- other experiments ------------------------------------------------------------------------
#: make elicit RUN=mine

compare: setup ## the arms of a recipe over training seeds, side by side
	$(PY) -m eval.compare$(with)

ablate: data arms eval compare ## GRPO under each shape of the reward and the published one, compared

elicit: data arms eval ## the elicitation question with every control and three training seeds

SKILLS_BASE := runs/skills/base/model/README.md
skills: $(if $(MODEL),,$(SKILLS_BASE)) data arms eval ## is a skill learnt that the base never shows? with known truth

$(SKILLS_BASE): | setup
	$(PY) -m pipeline.base --skills

blog: data arms sample published ## reproduce the published experiment, in small without a GPU

published: setup ## the last part of make blog: its table (BLOG=folder of the published answers)
	$(PY) -m eval.blog$(with)

sick: data arms doctor ## trainings made sick on purpose, and what the doctor says of each

calibrate: setup ## test the elicitation conclusion on simulated arms whose truth is known
	$(PY) -m eval.calibrate$(with)

base: setup ## rebuild the embedded base model (FROM=model continues that model instead)
	$(PY) -m pipeline.base$(with)

# --- the project itself -----------------------------------------------------------------------
#: make check

gallery: setup ## docs/gallery.md: a problem, gold answer and typical mistakes of every tier
	$(PY) -m rewards.gallery

wheel: ## problems, verifier, rewards and doctor as one wheel for other trainers, without set-up (OUT=dist)
	@$(new_enough)
	$(PYTHON) -m rewards.wheel$(with)

bench: data ## speed of generator, verifier, sampler and GRPO step, side by side
	$(PY) -m eval.bench$(with)

test: setup ## run all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal --durations 10

check: lint ## lint, types, and the tests that build no model
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal --durations 10 -m 'not slow'

lint: setup ## ruff, import contracts, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache
	$(PY) -m mypy

clean: ## remove caches; runs/ and .venv stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis unsloth_compiled_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
