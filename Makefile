# Every target is a script in scripts/, which can be run by itself too.
# PYTHON=python3.12 chooses the interpreter; else the first of 3.11 to 3.14 that works is taken.
export PYTHON

.PHONY: help demo test lint bench lock clean

help:
	@echo 'make demo   see it work: a gateway, a device and a dashboard   [DEMO_ARGS=...] [PYTHON=...]'
	@echo 'make test   run all tests, installing what they need           [PYTEST_ARGS=...] [PYTHON=...]'
	@echo 'make lint   style, types, layers and scripts, as CI checks them'
	@echo 'make bench  measure                                            [BENCH_ARGS=...]'
	@echo 'make lock   choose the locked versions anew'
	@echo 'make clean  remove what these targets made in this folder'

demo:
	@scripts/demo.sh $(DEMO_ARGS)

test:
	@scripts/test.sh $(PYTEST_ARGS)

lint:
	@scripts/lint.sh

bench:
	@scripts/bench.sh $(BENCH_ARGS)

lock:
	@scripts/lock.sh

clean:
	@scripts/clean.sh
