# Every target that needs an environment sets it up first (pip only). `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
LIGHT := .venv/light
ML := .venv/ml
# An environment holds what its images run and what development needs beside it. The stamp's name holds the hash of both lock files: a
# changed lock installs again, an untouched one costs nothing.
locks_hash = cat requirements-$(1).lock requirements-$(1)-dev.lock | sha256sum | cut -c1-16
LIGHT_STAMP := $(LIGHT)/.installed-$(shell $(call locks_hash,light))
ML_STAMP := $(ML)/.installed-$(shell $(call locks_hash,ml))
PROTO_FILES = $(shell find protos/tunemesh -name '*.proto' | sort)
PROTOC = $(LIGHT)/bin/python -m grpc_tools.protoc -I protos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTO_FILES)
MESH = $(LIGHT)/bin/python -m services.mesh
# What each half of the mesh needs; what they depend on comes with them.
PART_ranker := router feedback_collector trainer updater recommender joiner features
PART_llm := router feedback_collector llm retriever prompt_assembler curator tuner

.PHONY: help setup lock demo train backfill catalog select-features export-features search distill test test-deep up down status load bench mig logs topics fmt lint typecheck protos protos-check client-wheel clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make both environments from their lock files (the other targets do it themselves)
	@$(MAKE) --silent --jobs=2 $(LIGHT_STAMP) $(ML_STAMP)

lock: setup ## write the lock files from what is installed (after `.venv/ENV/bin/pip install PACKAGE==VERSION`)
	@for name in light ml; do .venv/$$name/bin/python -m services.mesh.images.locks $$name; rm -f .venv/$$name/.installed-*; done
	@touch "$(LIGHT)/.installed-$$($(call locks_hash,light))" "$(ML)/.installed-$$($(call locks_hash,ml))"

$(LIGHT_STAMP):
	@$(call make_env,$(LIGHT),light)

$(ML_STAMP):
	@$(call make_env,$(ML),ml)

# $(1) the folder, $(2) the environment's name. The locks are complete, hence --no-deps; the pins of the two environments conflict with
# what some wheels ask for (nvidia-pytriton asks for numpy 1). torch comes second: whichever build pip finds brings its own libraries.
# Modules are compiled when they are first imported (--no-compile): most never are.
define make_env
	command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) is not installed; Python 3.11 is needed (or: make PYTHON=/path/to/python3.11)" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: $(PYTHON) is not Python 3.11" >&2; exit 1; }; \
	echo "setting up the $(2) environment in $(1) (once per change of requirements-$(2).lock and requirements-$(2)-dev.lock)"; \
	[ -x $(1)/bin/python ] || $(PYTHON) -m venv $(1); \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-$(2).lock -r requirements-$(2)-dev.lock; \
	if grep -q '^torch==' requirements-$(2).lock; then \
		$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements-$(2).lock "$$(grep '^torch==' requirements-$(2).lock)"; fi; \
	printf '%s\n%s\n' "$(CURDIR)" "$(CURDIR)/protos/gen" > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tunemesh.pth"; \
	rm -f $(1)/.installed-*; touch $@
endef

demo: setup ## run both loops and write build/demo/report.json; PART=ranker|llm runs one, KEEP=1 leaves the mesh running
	@GRPC_ENABLE_FORK_SUPPORT=0 $(LIGHT)/bin/python -m loadtests.demo $(if $(PART),--part $(PART)) $(if $(KEEP),--keep) $(DEMO_ARGS)

train: setup ## train a base from your own events: make train DATA=FILE|FOLDER|PATTERN|URL [SPEC=spec.yaml] [OUT=build/base]
	@[ -n "$(DATA)" ] || { echo "usage: make train DATA=FILE|FOLDER|PATTERN|URL [SPEC=feature_spec.yaml] [OUT=build/base]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.train --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" --out "$(or $(OUT),build/base)" $(TRAIN_ARGS)

backfill: $(LIGHT_STAMP) ## load the base's counters and histories into the running mesh, before its first feedback: make backfill BASE=build/base
	@[ -n "$(or $(BASE),$(TUNEMESH_TRAINER_INITIAL_BASE))" ] || { echo "usage: make backfill BASE=FOLDER|URL (or set TUNEMESH_TRAINER_INITIAL_BASE)" >&2; exit 2; }
	@$(LIGHT)/bin/python -m streams.features.backfill --base "$(or $(BASE),$(TUNEMESH_TRAINER_INITIAL_BASE))"

catalog: setup ## tell the running mesh of the items and users in your files: make catalog DATA=FILE|FOLDER [SPEC=spec.yaml], TRAIN_ARGS as of make train
	@[ -n "$(DATA)" ] || { echo "usage: make catalog DATA=FILE|FOLDER [SPEC=feature_spec.yaml] [TRAIN_ARGS=\"--items FILE\"]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.catalogue --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" $(TRAIN_ARGS)

select-features: setup ## say what each feature of a spec is worth: make select-features DATA=… [SPEC=spec.yaml] [OUT=build/features.json]
	@[ -n "$(DATA)" ] || { echo "usage: make select-features DATA=FILE|FOLDER|PATTERN|URL [SPEC=feature_spec.yaml] [OUT=build/features.json]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.select_features --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" --out "$(or $(OUT),build/features.json)" $(SELECT_ARGS)

export-features: setup ## write what was known of users and items over time, for Feast: make export-features DATA=… [SPEC=spec.yaml] [OUT=build/feast], TRAIN_ARGS as of make train
	@[ -n "$(DATA)" ] || { echo "usage: make export-features DATA=FILE|FOLDER|PATTERN|URL [SPEC=feature_spec.yaml] [OUT=build/feast]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.feature_export.main --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" --out "$(or $(OUT),build/feast)" $(TRAIN_ARGS)

search: setup ## search a better spec (network, sizes, rates) on your events: make search DATA=… [SPEC=spec.yaml] [OUT=build/search] [SEARCH_ARGS="--trials 30"]
	@[ -n "$(DATA)" ] || { echo "usage: make search DATA=FILE|FOLDER|PATTERN|URL [SPEC=feature_spec.yaml] [OUT=build/search]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.search.main --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" --out "$(or $(OUT),build/search)" $(SEARCH_ARGS)

distill: setup ## train a small base with a large teacher beside it: make distill DATA=… SPEC=small.yaml TEACHER=large.yaml [OUT=build/distilled]
	@[ -n "$(DATA)" ] && [ -n "$(TEACHER)" ] || { echo "usage: make distill DATA=FILE|FOLDER|PATTERN|URL TEACHER=large.yaml [SPEC=feature_spec.yaml] [OUT=build/distilled]" >&2; exit 2; }
	@$(ML)/bin/python -m services.trainer.distill.main --data "$(DATA)" --spec "$(or $(SPEC),$(TUNEMESH_FEATURE_SPEC),model_repo/ranker/feature_spec.yaml)" --teacher "$(TEACHER)" --out "$(or $(OUT),build/distilled)" $(TRAIN_ARGS)

test: setup ## run all tests but the deep ones (minutes); TEST_ARGS="tests/unit/mesh -k plan" runs these only
	@$(LIGHT)/bin/python -m tests.run $(TEST_ARGS)

test-deep: setup ## run the deep tests: kill matrices, whole tunes, the whole demo; TEST_ARGS="--list" lists them, TEST_ARGS="--unit searches" runs one unit
	@$(LIGHT)/bin/python -m tests.run --deep $(TEST_ARGS)

up: setup ## start the mesh without Docker and leave it running; PART=ranker starts one half, s="llm retriever" these, also beside what runs
	@[ -z "$(PART)" ] || [ "$(PART)" = ranker ] || [ "$(PART)" = llm ] || { echo "make: PART=$(PART) is neither ranker nor llm" >&2; exit 2; }
	@$(MESH) up $(s) $(PART_$(PART))

down: $(LIGHT_STAMP) ## stop the mesh
	@$(MESH) down

status: $(LIGHT_STAMP) ## show each process of the mesh: state, pid, port, restarts, memory
	@$(MESH) status

load: $(LIGHT_STAMP) ## put open-loop load on the running mesh: HTML report, plot of latencies over time; LOAD_ARGS="--seconds 60"
	@$(LIGHT)/bin/python -m loadtests.load $(LOAD_ARGS)

bench: $(LIGHT_STAMP) $(ML_STAMP) ## measure what is promised about speed beside its peers, build/bench/*.json: make bench AGAINST=FOLDER BENCH_ARGS="recommend_today"
	@$(LIGHT)/bin/python -m loadtests.bench $(if $(AGAINST),--against $(AGAINST)) $(BENCH_ARGS)

mig: $(LIGHT_STAMP) ## show how this machine's GPUs are divided, or plan: make mig ARGS="plan --gpu h100-80 --need llm=40g"
	@$(MESH) mig $(or $(ARGS),status)

logs: $(LIGHT_STAMP) ## follow a service's log: make logs s=router
	@$(MESH) logs $(s) --follow

fmt: $(LIGHT_STAMP) ## format the code
	@$(LIGHT)/bin/ruff format . && $(LIGHT)/bin/ruff check --fix .

lint: $(LIGHT_STAMP) ## check format, style and the import rules
	@$(LIGHT)/bin/ruff format --check . && $(LIGHT)/bin/ruff check . && $(LIGHT)/bin/lint-imports

typecheck: $(LIGHT_STAMP) ## mypy --strict
	@$(LIGHT)/bin/mypy

protos: $(LIGHT_STAMP) ## generate protos/gen from protos/tunemesh
	@find protos/gen -name '*_pb2*' -delete
	@$(call PROTOC,protos/gen)

# With what the protos are compared: PROTOS_AGAINST=COMMIT, else where this branch left main. On main itself: the last commit, when the protos are
# changed and not committed yet; what origin/main was before the last fetch or push moved it; or, in a fresh clone, which does not know that, the
# commit PROTOS_DEPTH back, since main may just have been moved on by many commits at once. A field that came and went in between breaks nobody.
# A break that is meant stands in protos/breaks.txt.
PROTOS_DEPTH ?= 100
protos-check: $(LIGHT_STAMP) ## buf lint, buf breaking against what main had before, and generated code equal to what protos give
	@$(LIGHT)/bin/buf lint
	@main=$$(git rev-parse --verify --quiet origin/main || git rev-parse --verify --quiet main || git rev-parse --verify --quiet HEAD || true); \
	before="$(PROTOS_AGAINST)"; [ -n "$$before" ] || before=$$(git merge-base HEAD "$$main" 2> /dev/null || true); \
	head=$$(git rev-parse --verify --quiet HEAD || true); oldest=; \
	[ -z "$$head" ] || oldest=$$(git rev-list --first-parent --max-count=$$(($(PROTOS_DEPTH) + 1)) HEAD | tail -1); \
	if [ -n "$$before" ] && [ "$$before" = "$$head" ] && git diff --quiet HEAD -- protos; then \
		before=$$(git rev-parse --verify --quiet 'origin/main@{1}' 2> /dev/null || true); \
		if [ -z "$$before" ] || [ "$$before" = "$$head" ] || ! git merge-base --is-ancestor "$$before" HEAD 2> /dev/null; then before=$$oldest; fi; \
		[ "$$before" != "$$head" ] || before=; \
	fi; \
	if [ -z "$$before" ]; then echo "protos-check: no earlier commit to compare with, breaking changes not checked"; exit 0; fi; \
	echo "protos-check: breaking changes since $$(git log -1 --format='%h %s' "$$before" | cut -c1-80)"; \
	$(LIGHT)/bin/python protos/breaks.py $(LIGHT)/bin/buf "$$before" "$$oldest"
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC,"$$fresh"); \
	diff -r -x __pycache__ -x py.typed "$$fresh" protos/gen > "$$fresh.diff" || { cat "$$fresh.diff"; rm -f "$$fresh.diff"; echo "protos-check: protos/gen differs from the protos: run make protos" >&2; exit 1; }; rm -f "$$fresh.diff"
	@echo "protos-check: protos and generated code agree"

client-wheel: $(LIGHT_STAMP) ## build the wheel of the Python client into build/wheels
	@$(LIGHT)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheels ./tunemesh_client
	@ls build/wheels/tunemesh_client-*.whl

clean: ## remove what runs and builds leave behind (environments stay)
	@[ ! -x $(LIGHT)/bin/python ] || $(MESH) down
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find services streams loadtests tests protos model_repo tunemesh_client -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true
