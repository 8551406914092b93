"""The report: what it says, that it needs nothing from outside, and that it opens in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from headct.errors import UsageError
from headct.evaluate.carry_over import carry_over
from headct.evaluate.checklist import AUTHORS, checklist
from headct.evaluate.evaluation import EvaluationConfig, evaluate
from headct.evaluate.headline import answers, lead_method, opening, verdict
from headct.evaluate.history import ingest_account
from headct.evaluate.report import TITLE, Sources, render, write_report
from headct.evaluate.results import read_results
from headct.evaluate.theme import colour, distinct_colours
from headct.store.layout import ITEMS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def evaluation(tasks_in, new_cohort, folder):
    make_task, cohort = tasks_in(folder), new_cohort()
    tasks = [
        make_task(cohort, "probe-histogram", 0.8),
        make_task(cohort, "scratch-vit", 0.2),
        make_task(cohort, "finetune", 1.6),
        make_task(cohort, "fewshot", 1.0, seeds=(0, 1, 2, 3, 4), shots=(5, 10)),
    ]
    evaluate(tasks, folder / "eval", EvaluationConfig(n_boot=50, min_positives=3))
    return folder / "eval"


@pytest.fixture(scope="module")
def store(folder):
    """Enough of a store for the account of ingest."""
    folder = folder / "store"
    folder.mkdir()
    items = [
        item("c-1", "accepted"),
        item("c-2", "flagged", "gantry-tilt", flags=["gantry-tilt"]),
        item(None, "refused", "missing-slices", message="gap of 2 slices <b>here</b>"),
        item(None, "refused", "not-ct"),
        item(None, "skipped", "not-dicom"),
    ]
    (folder / ITEMS).write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


def item(scan_id, status, reason=None, message="", flags=()):
    return {
        "source": f"f-{reason}",
        "series": None,
        "status": status,
        "reason": reason,
        "message": message,
        "scan_id": scan_id,
        "flags": list(flags),
        "n_files": 1,
    }


@pytest.fixture(scope="module")
def run(folder):
    folder = folder / "run"
    (folder / "panels").mkdir(parents=True)
    rows = [
        {
            "step": s,
            "seen_scans": 8 * s,
            "loss": 1 / s,
            "mae_loss": 1 / s,
            "cls_std": 0.5,
            "lr": 1e-3,
        }
        for s in range(10, 210, 10)
    ]
    rows[3]["loss"], rows[3]["applied"] = None, False
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"seed": 3}))
    picture = np.random.default_rng(0).random((20, 60))
    matplotlib.image.imsave(folder / "panels" / "step-00000200.png", picture, cmap="gray")
    return folder


@pytest.fixture(scope="module")
def page(evaluation, store, run, folder):
    out = folder / "report.html"
    write_report(evaluation, out, Sources(store=store, run=run))
    return out


class References(HTMLParser):
    """Everything that a browser could load, and whether tags are closed."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "data", "action", "srcset")
        self.loads += [value for name, value in attrs if name in names]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside_itself(page):
    parser = References()
    parser.feed(page.read_text())
    assert parser.open == []
    assert all(value.startswith(("#", "data:image/png")) for value in parser.loads)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    assert not re.findall(r"url\((?!#)", page.read_text())
    assert "default-src 'none'" in page.read_text()


def test_ids_that_figures_refer_to_exist_once(page):
    text = page.read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    assert used <= set(ids)
    assert all(ids.count(name) == 1 for name in used)


def test_it_says_research_use_only_and_never_normal_about_a_scan(page):
    text = page.read_text()
    assert text.count("not a medical device") + text.count("Not a medical device") >= 2
    assert "is not thereby normal" in text


def test_the_numbers_on_the_page_are_those_of_the_tables(evaluation, page):
    results = read_results(evaluation)
    text = page.read_text()
    for method in results.methods:
        for finding in results.findings:
            found = results.metric(method, "hospital-b", finding, "auroc")
            assert f"{found.value:.3f}<small>{found.lo:.3f}–{found.hi:.3f}</small>" in text
    lead = lead_method(results)
    assert lead == "finetune"
    assert opening(results, lead) in text


def test_answers_follow_the_intervals(evaluation):
    results = read_results(evaluation)
    found = {answer.question: answer for answer in answers(results, "finetune")}
    scratch = found["Does the fine-tuned encoder beat the ViT from scratch?"]
    assert scratch.verdict == "better"
    row = results.difference("finetune", "scratch-vit", "hospital-b")
    assert f"{row['difference']:+.3f}" in scratch.sentence
    assert verdict({"lo": -0.1, "hi": 0.1}) == "unclear"
    assert verdict({"lo": -0.2, "hi": -0.1}) == "worse"


def test_a_method_below_its_floor_is_said_to_be_below_it(make_task, cohort, tmp_path):
    tasks = [make_task(cohort, "probe-histogram", 2.5), make_task(cohort, "finetune", 0.0)]
    evaluate(tasks, tmp_path / "eval", EvaluationConfig(n_boot=50, min_positives=3))
    results = read_results(tmp_path / "eval")
    floor = answers(results, "finetune")[0]
    assert floor.verdict == "worse"
    assert floor.sentence.startswith("No, it is worse")
    assert "not shown everywhere that the network adds" in floor.sentence


def test_the_account_adds_up_and_lists_what_was_refused_escaped(store, page):
    account = ingest_account(store)
    assert account.n_seen == sum(n for _, n in account.states) == 5
    text = page.read_text()
    assert "5 seen = 1 accepted + 1 flagged + 2 refused + 1 skipped" in text
    assert "gap of 2 slices &lt;b&gt;here&lt;/b&gt;" in text
    assert "<b>here</b>" not in text


def test_pretraining_curves_and_panel_are_shown(page):
    text = page.read_text()
    assert "1 steps were not applied" in text
    assert "Step 200: input" in text
    assert "Pretraining: losses and collapse guards" in text


def test_only_a_report_is_replaced(evaluation, tmp_path):
    thesis, out = tmp_path / "thesis.html", tmp_path / "report.html"
    thesis.write_text("<!doctype html><title>My thesis</title>")
    with pytest.raises(UsageError, match="html is there, and is no report"):
        write_report(evaluation, thesis, Sources())
    assert "My thesis" in thesis.read_text()
    with pytest.raises(UsageError, match="is a folder") as caught:
        write_report(evaluation, tmp_path, Sources())
    assert str(tmp_path) in caught.value.message
    out.touch()
    for _ in range(2):
        write_report(evaluation, out, Sources())
        assert TITLE in out.read_text()
        out.write_text(out.read_text() + "<!-- older -->")


def test_a_bare_evaluation_makes_a_page_too(evaluation):
    text = render(read_results(evaluation))
    assert "give --store to show it" in text
    assert "What ingest did" not in text


def test_one_method_at_one_site_makes_a_page_too(make_task, cohort, tmp_path):
    cohort.site[:] = ""
    evaluate([make_task(cohort, "probe")], tmp_path / "eval", EvaluationConfig(n_boot=0))
    text = render(read_results(tmp_path / "eval"))
    assert "nothing to compare" in text


def test_a_site_without_positives_leaves_no_false_sentence_and_no_empty_curve(
    make_task, cohort, tmp_path
):
    away = cohort.site != cohort.site[0]
    cohort.truth[away] = np.minimum(cohort.truth[away], 0)
    tasks = [make_task(cohort, "probe", n_train=n, name=f"probe-{n}") for n in (30, 300)]
    evaluate(tasks, tmp_path / "eval", EvaluationConfig(n_boot=20))
    text = render(read_results(tmp_path / "eval"))
    assert "labelled train scans" in text
    assert "carry over to the other" not in text


def test_no_identifier_of_the_cohort_is_on_the_page(page, new_cohort):
    text, cohort = page.read_text(), new_cohort()
    assert not any(name in text for name in {*cohort.patient_id, *cohort.scan_id})


@pytest.mark.parametrize("damage", ["metrics.parquet", "evaluation.json", ""])
def test_a_damaged_evaluation_is_named_as_such(evaluation, tmp_path, damage):
    copy = tmp_path / "eval"
    if damage:
        shutil.copytree(evaluation, copy)
        next(copy.rglob(damage)).write_text("{")
    with pytest.raises(UsageError, match="eval"):
        write_report(copy, tmp_path / "out.html", Sources())
    assert not (tmp_path / "out.html").exists()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_opens_it_without_asking_the_network(page, tmp_path):
    log = tmp_path / "net.json"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    # every host name resolves to nowhere, and every request is written down
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-component-update"]
    answer = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert "Head CT detectors" in answer.stdout
    assert answer.stdout.count("<svg") >= 6
    # the browser asks its maker for updates; a page without scripts asks only what it names
    asked = set(re.findall(r'"url":"(?:https?|ftp|wss?)://([^/"]+)', log.read_text()))
    assert not [host for host in asked if host in page.read_text()]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(page, tmp_path, dark):
    shot = tmp_path / "shot.png"
    look = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(BROWSER), *FLAGS, *look, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--hide-scrollbars", "--window-size=1200,1600", f"--screenshot={shot}"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    picture = matplotlib.image.imread(shot)[..., :3].mean(axis=2)
    background = np.median(picture)
    assert (background < 0.3) == dark
    assert np.quantile(np.abs(picture - background), 0.995) > 0.5


def test_the_browser_is_there_in_ci():
    if os.environ.get("CI") and Path("/usr/bin/apt-get").exists() and os.geteuid() == 0:
        assert BROWSER, "make system-tools should have installed it"


def test_every_item_of_claim_and_tripod_is_answered_or_left_to_people_once(evaluation, store):
    items = checklist(read_results(evaluation), ingest_account(store), None)
    claim = sorted(int(number) for i in items for number in i.claim.split(", ") if number)
    assert claim == list(range(1, 45))
    tripod = [number for i in items for number in i.tripod.split(", ") if number]
    several = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}
    wanted = {
        f"{n}{'abcdefg'[k]}" if n in several else str(n)
        for n in range(1, 28)
        for k in range(several.get(n, 1))
    }
    assert set(tripod) == wanted
    assert [i.topic for i in items if not i.known and i.text == AUTHORS], "some are people's"
    flow = next(i for i in items if i.topic == "Flow of cases")
    assert flow.text.startswith("5 inputs: ")


def test_what_nobody_told_the_tool_is_left_to_people(evaluation):
    items = {i.topic: i for i in checklist(read_results(evaluation), None, None)}
    assert not items["Flow of cases"].known
    assert not items["Fairness"].known
    assert not items["Acquisition"].known
    assert items["Uncertainty and significance"].text.startswith("95% intervals from 50 resamples")


def test_the_checklist_alone_as_markdown(evaluation, store, tmp_path):
    out = tmp_path / "checklist.md"
    write_report(evaluation, tmp_path / "report.html", Sources(store=store), out)
    lines = out.read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1, "a table of five columns"
    assert any(line.startswith("| x | Flow of cases | 35 | 20a | 5 inputs") for line in lines)


def test_a_completed_checklist_is_never_replaced(evaluation, tmp_path):
    page, out = tmp_path / "report.html", tmp_path / "checklist.md"
    write_report(evaluation, page, Sources(), out)
    text = out.read_text()
    write_report(evaluation, page, Sources(), out)
    assert out.read_text() == text
    page.unlink()
    out.write_text(text + "Completed by hand.\n")
    completed = out.read_text()
    with pytest.raises(UsageError, match="completed by hand"):
        write_report(evaluation, page, Sources(), out)
    assert out.read_text() == completed
    assert not page.exists()
    with pytest.raises(UsageError, match="is a folder"):
        write_report(evaluation, page, Sources(), tmp_path)
    with pytest.raises(UsageError, match="name one file"):
        write_report(evaluation, page, Sources(), tmp_path / "x" / ".." / page.name)
    out.write_text("")
    write_report(evaluation, page, Sources(), out)
    assert out.read_text() == text


def test_how_well_maps_lie_on_lesions_is_shown(evaluation, tmp_path):
    numbers = {"n": 7, "hit": 0.5, "hit_lo": 0.2, "hit_hi": 0.8, "chance_hit": 0.125}
    numbers |= {"dice": 0.3, "dice_lo": 0.1, "dice_hi": 0.4, "chance_dice": 0.025}
    summary = [{"map": name, "finding": "sdh"} | numbers for name in ("attention", "gradient")]
    (tmp_path / "localisation.json").write_text(json.dumps({"summary": summary}))
    write_report(evaluation, tmp_path / "r.html", Sources(maps=tmp_path))
    page = (tmp_path / "r.html").read_text()
    assert 'id="localisation"' in page
    assert "0.125" in page
    with pytest.raises(UsageError, match="does not say how well"):
        write_report(evaluation, tmp_path / "r.html", Sources(maps=tmp_path / "nowhere"))


def test_where_a_method_was_trained_and_tested_is_shown(evaluation):
    results = read_results(evaluation)
    found = {row.method: row for row in carry_over(results)}
    lead = found["finetune"]
    inside, outside = (
        [
            results.metric("finetune", site["site"], "macro", "auroc").value
            for site in results.sites
            if site["internal"] == internal
        ]
        for internal in (True, False)
    )
    assert lead.inside == pytest.approx(np.mean(inside))
    assert lead.outside == pytest.approx(np.mean(outside))
    assert "OOD − ID" in render(results)


def test_methods_of_a_benchmark_have_colours_of_their_own():
    methods = ["finetune", *(f"encoder-{i}.probe" for i in range(10))]
    with distinct_colours(methods):
        colours = [colour(name) for name in methods]
        assert colour("finetune") == colours[0]
    assert len(set(colours)) == len(methods)


def test_few_shot_tasks_alone_are_evaluated_at_their_largest_k(tasks_in, new_cohort, tmp_path):
    make_task, cohort = tasks_in(tmp_path), new_cohort()
    more = {"seeds": (0, 1, 2, 3, 4), "shots": (5, 10)}
    tasks = [make_task(cohort, name, 1.0, **more) for name in ("fewshot", "fewshot-histogram")]
    evaluate(tasks, tmp_path / "eval", EvaluationConfig(n_boot=20, min_positives=3))
    results = read_results(tmp_path / "eval")
    assert set(results.methods) == {"fewshot", "fewshot-histogram"}
    assert {row["k"] for row in results.tables["metrics"]} == {10}
    sentence = opening(results, lead_method(results))
    assert "10 training scans with and 10 without each finding" in sentence
    assert "few labels" in render(results)
