# Slotwise: reinforcement learning with verifiable rewards on a scheduling problem.
# The whole experiment, in order:  make data sft grpo eval

GPU_HERE := $(shell command -v nvidia-smi)
# Some goals are experiments of their own.
named   = $(if $(filter $(1),$(MAKECMDGOALS)),$(2))
# The experiment: RECIPE=one of pipeline/recipes, or a file of your own
RECIPE ?= pipeline/recipes/$(or $(call named,ablate,ablation),$(call named,elicit,elicitation),$(call named,skills,skills),$(call named,sick,sick),$(call named,blog,$(if $(GPU_HERE),blog-7b,blog-tiny)),tiny).yaml
# Override what the recipe says: MODEL=folder-or-hub-id  BACKEND=auto, unsloth or trl (but for
# arms that name their own)  BITS=4 or 8 (of the weights in training), 16 (everywhere)  RUN=name-below-runs  FORCE=1 (redo)
MODEL  ?=
BACKEND ?=
BITS   ?=
RUN    ?=
FORCE  ?=
# UNSOUND=1 trains though the reward fails its audit
UNSOUND ?=
ARM    ?=
# of `make try`: DAY=calendar, JSON or lines; none asks for it  DATE=YYYY-MM-DD of a calendar
DAY    ?=
DATE   ?=
# of sft, grpo and arms, in several processes: LAUNCH='--config_file pipeline/accelerate/ddp.yaml --num_processes 4'
LAUNCH ?=
# of `make plan`: GPU=GiB (default: this machine's)  MEASURE=1 holds it against real trainers
GPU     ?=
MEASURE ?=
# of `make blog`: BLOG=folder with the published files; without it they are had from the hub
BLOG   ?=

# of `make export`: OUT=folder  ADAPTER=1 (the LoRA alone)  GGUF=q8_0  PUSH=owner/name  PUBLIC=1
OUT     ?=
ADAPTER ?=
GGUF    ?=
PUSH    ?=
PUBLIC  ?=

PYTHON ?= python3
PY     := .venv/bin/python
TRAIN  := $(PY) -m$(if $(LAUNCH), pipeline.model.processes $(LAUNCH) -m)
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
listed  = $(shell sed -n 's/^#$(1) //p' requirements.txt)
# What users name may hold blanks and quotes: $(call flag,model,$(MODEL)) is " --model 'what they gave'", or nothing.
quoted  = '$(subst ','\'',$(1))'
flag    = $(if $(2), --$(1) $(call quoted,$(2)))
on      = $(if $(2), --$(1))
loading = $(call flag,backend,$(BACKEND))$(call flag,bits,$(BITS))
stage   = --recipe $(call quoted,$(1))$(call flag,model,$(MODEL))$(call flag,run,$(RUN))$(call on,force,$(FORCE))$(loading)
STAGE  := $(call stage,$(RECIPE))
# What would be passed over in silence is a mistake: $(call without,goal,VARIABLES,why); on make's command line also a
# setting that none of its goals takes, and any name not known here (one like CUDA_VISIBLE_DEVICES=1 reaches the
# programs that know it: make exports it).
given   = $(if $(filter command environment,$(firstword $(origin $(1)))),$($(1)))
without = $(foreach name,$(2),$(if $(call given,$(name)),$(error $(1) takes no $(name): $(3))))
named_here := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
settings    = $(shell sed -n 's/^\([A-Z]*\) *?=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
$(if $(named_here),$(foreach name,$(filter-out $(settings) PY SHELL MAKE%,$(named_here)),$(if $(findstring _,$(name)),,$\
    $(error there is no $(name)= here; there are $(settings)))))

training = sft grpo arms ablate elicit skills blog sick
staged   = data audit $(training) eval sample report try export probe plan backends bench
of_RECIPE  = $(staged) doctor gpu-check
of_MODEL   = $(staged) gpu-check
of_RUN     = $(staged) doctor gpu-check
of_BACKEND = $(staged) gpu-check
of_BITS    = $(staged) gpu-check
of_FORCE   = $(staged) gpu-check
of_UNSOUND = grpo
of_ARM     = sample try export probe
of_DAY     = try
of_DATE    = try
of_LAUNCH  = $(training)
of_GPU     = plan
of_MEASURE = plan
of_BLOG    = blog
of_OUT     = export base
of_ADAPTER = export
of_GGUF    = export
of_PUSH    = export
of_PUBLIC  = export
of_SHARD   = sample
of_LOG     = doctor sick
of_SHAPES  = gpu-check
of_MINUTES = gpu-check
of_FROM    = base
goals      = $(or $(MAKECMDGOALS),help)
# A make in a make (`make blog`) has what the outer one was given, and some of its goals.
$(if $(filter 0,$(MAKELEVEL)),$(foreach name,$(filter-out PYTHON,$(filter $(settings),$(named_here))),$(if $($(name)),\
    $(if $(filter $(of_$(name)),$(goals)),,$(error make $(goals) takes no $(name): it is of make $(of_$(name)))))))

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup data audit sft grpo arms eval sample report try export ablate elicit skills blog probe doctor sick plan gpu-check backends calibrate base bench test lint clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo 'The first lines of the Makefile explain RECIPE=, MODEL=, RUN=, FORCE=1 and whatever else may be set.'

setup: .venv/ready ## create .venv and install the pinned requirements (the others call it)

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; PYTHON=python3.12 make setup names another one")'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps $(call listed,no-deps)
	$(if $(GPU_HERE),$(PIP) -c requirements.txt $(call listed,gpu))
	@touch $@

data: setup ## make the problems: proven optimum, prompt, gold answer, dataset card
	$(PY) -m pipeline.train.settings $(STAGE)
	$(PY) -m data.make $(STAGE)
	TOKENIZERS_PARALLELISM=true $(PY) -m pipeline.model.lengths $(STAGE)

audit: setup ## score policies that cheat under the recipe's reward; fails where one is paid
	$(PY) -m rewards.audit $(STAGE)

sft: setup ## supervised fine-tuning on gold answers
	$(TRAIN) pipeline.sft $(STAGE)

grpo: setup ## reinforcement learning with verifiable rewards, once the reward passed its audit
	$(TRAIN) pipeline.grpo $(STAGE)$(call on,unsound,$(UNSOUND))

arms: setup ## train every arm of the recipe, sft and grpo among them
	$(TRAIN) pipeline.arms $(STAGE)

eval: setup ## sample every arm, judge the answers, report pass@k: elicited or learnt?
	$(PY) -m eval.sample $(STAGE)
	$(PY) -m eval.judge $(STAGE)
	$(PY) -m eval.elicitation $(STAGE)

# of `make sample`: SHARD=i/n draws one of n parts, one for each of n processes  ARM=grpo: that arm alone
SHARD  ?=
sample: setup ## draw every arm's answers and no more (SHARD=2/4: a part, one for each GPU; ARM=grpo)
	$(PY) -m eval.sample $(STAGE)$(call flag,arm,$(ARM))$(call flag,shard,$(SHARD))

report: setup ## one HTML page of everything, with real answers drawn as days
	$(PY) -m eval.report $(STAGE)

try: setup ## ask a trained model about your own day (DAY=calendar.ics DATE=2026-03-02 ARM=sft)
	$(PY) -m eval.try $(STAGE)$(call flag,arm,$(ARM))$(call flag,day,$(DAY))$(call flag,date,$(DATE))

AS_EXPORTED = $(call on,adapter,$(ADAPTER))$(call flag,gguf,$(GGUF))$(call flag,push,$(PUSH))$(call on,public,$(PUBLIC))
export: setup ## a trained model as a folder for others, with its card (ARM=grpo OUT=folder PUSH=owner/name)
	$(PY) -m eval.export $(STAGE)$(call flag,arm,$(ARM))$(call flag,out,$(OUT))$(AS_EXPORTED)

ablate: data arms eval ## GRPO under each shape of the reward and the published one, compared
	$(PY) -m eval.compare $(STAGE)

elicit: data arms eval ## the elicitation question with every control and three training seeds

SKILLS_BASE := runs/skills/base/model/README.md
skills: $(if $(MODEL),,$(SKILLS_BASE)) data arms eval ## is a skill learnt that the base never shows? with known truth

$(SKILLS_BASE): | setup
	$(PY) -m pipeline.base --skills

BLOG_RECIPE = runs/$(or $(RUN),blog)/recipe.yaml
BLOG_STAGE   = $(call stage,$(BLOG_RECIPE))
blog: setup ## reproduce the published experiment, in small without a GPU (BLOG=folder of its files)
	$(PY) -m eval.blog $(STAGE) --begin $(call quoted,$(BLOG_RECIPE))$(call flag,files,$(BLOG))
	$(MAKE) --no-print-directory data arms RECIPE=$(call quoted,$(BLOG_RECIPE))
	$(PY) -m eval.sample $(BLOG_STAGE)
	$(PY) -m eval.blog $(BLOG_STAGE)$(call flag,files,$(BLOG))

probe: setup ## has GRPO anything to work with? samples training prompts (ARM=sft, default base)
	$(PY) -m eval.probe $(STAGE)$(call flag,arm,$(ARM))

# of `make doctor`: LOG=file or folder of any TRL training
LOG    ?=
doctor: setup ## what is wrong with a training, running or finished? (RUN=name, or LOG=any TRL run)
	$(PY) -m pipeline.doctor$(or $(call flag,log,$(LOG)),$(call flag,run,$(RUN)),$(call flag,recipe,$(RECIPE)))

sick: data arms doctor ## trainings made sick on purpose, and what the doctor says of each

plan: setup ## will it fit? memory of SFT, GRPO and sampling before any weights load (MODEL=… GPU=24)
	$(if $(MEASURE),$(call without,make plan MEASURE=1,RECIPE MODEL RUN BACKEND BITS GPU,it measures a small model of its own)$(PY) -m pipeline.measure,$(PY) -m pipeline.plan $(STAGE)$(call flag,gpu,$(GPU)))

# of `make gpu-check`: SHAPES="qwen2.5-0.5b qwen2.5-7b"  MINUTES=9 (then stop; the same command goes on)
SHAPES  ?=
MINUTES ?=
CHECKED  = $(call flag,minutes,$(MINUTES))$(call flag,backends,$(BACKEND))$(call flag,bits,$(BITS))$(call flag,recipe,$(call given,RECIPE))$(call on,force,$(FORCE))
gpu-check: setup ## measure step time and memory of both backends on this GPU, and how far `make plan` is off
	$(call without,make gpu-check,MODEL RUN,it makes models of its own; SHAPES= names their sizes)$\
	$(PY) -m pipeline.gpu_check$(if $(SHAPES), --shapes $(SHAPES))$(CHECKED)

backends: data ## do Unsloth and plain TRL train the same thing? settings, log-probabilities, first update
	$(PY) -m pipeline.backends $(STAGE)

calibrate: setup ## test the elicitation verdict on simulated arms whose truth is known
	$(PY) -m eval.calibrate

# of `make base`: FROM=folder  OUT=folder
FROM   ?=
base: setup ## rebuild the embedded base model (FROM=model continues that model instead)
	$(PY) -m pipeline.base$(call flag,from,$(FROM))$(call flag,out,$(OUT))

bench: data ## speed of generator, verifier, sampler and GRPO step, side by side
	$(PY) -m eval.bench $(STAGE)

test: setup ## run the tests
	$(PY) -m pytest

lint: setup ## ruff: lint and format check
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## remove caches; runs/ and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis unsloth_compiled_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
