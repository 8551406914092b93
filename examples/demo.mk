# The demo, step by step: `make demo` calls this. Each step is left out when its result is there, and a
# step that was interrupted goes on where it stopped.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:

LABELS := $(D)/archive/labels.csv
STORE := $(D)/store
BUNDLE := $(D)/run/bundle
DATA := --store $(STORE) --labels $(LABELS)
TASKS := $(addprefix $(D)/tasks/,probe histogram blocks random-init finetune scratch-vit scratch-cnn fewshot)

.PHONY: report
report: $(D)/report.html
	@echo
	@echo "The report: $(abspath $(D)/report.html)"

$(D)/archive/labels.csv:
	$(HEADCT) phantom --preset demo --out $(D)/archive

# Exit code 1 says that some inputs were refused, as the planted ones should be.
$(D)/store/summary.html: $(LABELS)
	rm -f $@
	$(HEADCT) ingest $(D)/archive/dicom --out $(STORE) --grid demo || [ $$? -eq 1 -a -f $@ ]

$(BUNDLE)/bundle.json: $(LABELS)
	$(HEADCT) pretrain demo --store $(D)/archive/pool --out $(D)/run

$(D)/features/encoder.parquet: $(BUNDLE)/bundle.json $(D)/store/summary.html
	$(HEADCT) embed $(STORE) --bundle $(BUNDLE) --out $@

$(D)/features/random-init.parquet: $(BUNDLE)/bundle.json $(D)/store/summary.html
	$(HEADCT) embed $(STORE) --bundle $(BUNDLE) --random-init 0 --out $@

$(D)/features/histogram.parquet: $(D)/store/summary.html
	$(HEADCT) embed $(STORE) --floor histogram --out $@

$(D)/features/blocks.parquet: $(D)/store/summary.html
	$(HEADCT) embed $(STORE) --floor blocks --out $@

$(D)/tasks/blocks: $(D)/features/blocks.parquet
	$(HEADCT) probe --features $< $(DATA) --out $@

$(D)/tasks/probe: $(D)/features/encoder.parquet
	$(HEADCT) probe --features $< $(DATA) --out $@

$(D)/tasks/histogram: $(D)/features/histogram.parquet
	$(HEADCT) probe --features $< $(DATA) --out $@

$(D)/tasks/random-init: $(D)/features/random-init.parquet
	$(HEADCT) probe --features $< $(DATA) --out $@

$(D)/tasks/fewshot: $(D)/features/encoder.parquet
	$(HEADCT) fewshot --features $< $(DATA) --shots 5,10 --out $@

$(D)/tasks/finetune: $(BUNDLE)/bundle.json $(D)/store/summary.html
	$(HEADCT) finetune $(DATA) --bundle $(BUNDLE) --out $@

$(D)/tasks/scratch-vit: $(BUNDLE)/bundle.json $(D)/store/summary.html
	$(HEADCT) finetune $(DATA) --from-scratch vit --out $@

$(D)/tasks/scratch-cnn: $(D)/store/summary.html
	$(HEADCT) finetune $(DATA) --from-scratch cnn3d --out $@

$(D)/eval/evaluation.json: $(TASKS)
	$(HEADCT) evaluate $^ --out $(D)/eval

$(D)/report.html: $(D)/eval/evaluation.json
	$(HEADCT) report $(D)/eval --store $(STORE) --task $(D)/tasks/finetune --run $(D)/run --out $@
