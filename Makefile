# Two commands: `make demo` and `make test`. Each makes .venv and everything in it first.
# On a ROS 2 installation use colcon instead (README.md).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Nothing of ours reaches another machine's graph.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

.PHONY: demo test bench lint setup clean

demo: setup
	$(BIN)/hybrid-guidance demo --procedure lumbar_facet_injection --seed 1

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST)

bench: setup
	@for benchmark in bench/[a-z]*.py; do $(BIN)/python "$$benchmark" || exit 1; done

setup: $(READY)

$(READY): requirements.txt setup.py tools/setup.sh tools/build_tf2_msgs.py tools/msg/TFMessage.msg
	PYTHON=$(PYTHON) tools/setup.sh $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) demo-output build install log
