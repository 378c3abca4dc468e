import json
import os
from argparse import ArgumentParser
from pathlib import Path

import conll_results
import pytest
import run_eval
from conll_tables import spread
from parallel_tasks import Runner, Settings, Task, left_to_do, read_results, write_results

from decodner_cli.training_arguments import add_train_arguments

EVAL = Path(__file__).parents[2] / "eval"


def code(text):
    return ("-c", f"import json, os, pathlib, sys, time\n{text}")


MAKE = code("(p := pathlib.Path(sys.argv[1])).mkdir()\n(p / 'w').write_text('a')\nprint(json.dumps({'made': 1}))")
CHANGE = code("p = pathlib.Path(sys.argv[1]) / 'w'\np.write_text(p.read_text() + 'b')\nprint(1)")
READ = code(
    "print('x')\npathlib.Path(sys.argv[2]).write_text(json.dumps((pathlib.Path(sys.argv[1]) / 'w').read_text()))"
)
CHAIN = [  # in an order in which they cannot run
    Task("read-copy", "b", (*READ, "{model}", "{result}"), reads="copy"),
    Task("read", "b", (*READ, "{model}", "{result}"), reads="model"),
    Task("change", "a", (*CHANGE, "{model}"), reads="model", makes="copy"),
    Task("make", "a", (*MAKE, "{model}"), makes="model"),
]


@pytest.fixture
def settings(tmp_path):
    def make(gpus=0, jobs_per_gpu=2, max_seconds=30.0):
        return Settings(tmp_path / "out", tmp_path / "work", {"{data}": "D"}, gpus, jobs_per_gpu, max_seconds)

    return make


def run(tasks, settings, groups=("a", "b")):
    results = read_results(settings.out)
    return Runner(settings, results).run(left_to_do(tasks, groups, results, settings.work))


def test_tasks_wait_for_the_models_they_read_and_change_copies_only(settings):
    assert run(CHAIN, settings()) == []
    results = read_results(settings().out)
    assert next(iter(results)) == "make"
    assert {name: entry["result"] for name, entry in results.items()} == {
        "make": {"made": 1}, "change": 1, "read": "a", "read-copy": "ab",
    }  # fmt: skip
    assert results["make"]["device"] == "cpu"
    assert results["make"]["seconds"] > 0


def test_finished_tasks_are_skipped_and_what_makes_a_lost_model_runs_again(settings, tmp_path):
    work, names = tmp_path / "work", lambda tasks: [task.name for task in tasks]
    assert names(left_to_do(CHAIN, ["b"], {}, work)) == ["read-copy", "read", "change", "make"]
    run(CHAIN, settings(), ["a"])
    results = read_results(settings().out)
    assert list(results) == ["make", "change"]
    assert left_to_do(CHAIN, ["a"], results, work) == []
    assert names(left_to_do(CHAIN, ["a", "b"], results, work)) == ["read-copy", "read"]
    (work / "copy" / "w").rename(work / "w")
    (work / "copy").rmdir()
    assert names(left_to_do(CHAIN, ["b"], results, work)) == ["read-copy", "read", "change"]
    half_made = {"change": results["change"]}
    assert names(left_to_do(CHAIN, ["b"], half_made, work)) == ["read-copy", "read", "change", "make"]
    results["make"]["command"].append("--other")
    with pytest.raises(ValueError, match="result of make made with '--other' where ''"):
        left_to_do(CHAIN, ["a"], results, work)


def test_a_task_that_fails_stops_only_those_that_need_it(settings, capsys):
    broken = [*CHAIN[:2], Task("change", "a", code("print('why')\nsys.exit(5)"), "model", "copy"), CHAIN[3]]
    assert [task.name for task in run(broken, settings(jobs_per_gpu=1))] == ["read-copy", "change"]
    assert list(read_results(settings().out)) == ["make", "read"]
    said = capsys.readouterr().out
    assert "FAILED change, exit code 5" in said
    assert "\nwhy\n" in said


def test_a_result_is_found_before_warnings_at_exit_and_without_one_a_task_has_failed(settings, capsys):
    warning = "print('[W] leaked\\n1 semaphore', file=sys.stderr)"
    warns = Task("warns", "a", code(f"print(json.dumps({{'f1': 1}}), flush=True)\n{warning}"))
    silent = Task("silent", "a", code("print('nothing')"))
    slow = Task("slow", "a", code("time.sleep(0.5)\nprint(2)"))
    assert run([warns, silent, slow], settings(jobs_per_gpu=3)) == [silent]
    assert {name: entry["result"] for name, entry in read_results(settings().out).items()} == {
        "warns": {"f1": 1}, "slow": 2,
    }  # fmt: skip
    assert "FAILED silent, no result" in capsys.readouterr().out


def test_a_run_cut_by_time_keeps_what_is_finished_and_leaves_no_process(settings, tmp_path):
    mark = tmp_path / "mark"
    slow = Task(
        "slow", "a", code(f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(9)\nprint(1)")
    )
    quick = Task("quick", "a", code("print(2)"))
    assert run([slow, quick], settings(max_seconds=2.0), ["a"]) == [slow]
    assert list(read_results(settings().out)) == ["quick"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1"]), ("3,5,7", ["3", "5"])])
def test_each_slot_sees_its_own_gpu(settings, monkeypatch, visible, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    show = code("time.sleep(0.5)\nprint(json.dumps([os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[1:]]))")
    tasks = [Task(f"t{number}", "a", (*show, "{data}/x")) for number in range(4)]
    assert run(tasks, settings(gpus=2), ["a"]) == []
    results = read_results(settings().out)
    assert sorted(entry["result"][0] for entry in results.values()) == sorted(names * 2)
    assert all(entry["device"] == f"cuda:{entry['result'][0]}" for entry in results.values())
    assert results["t0"]["result"][1] == ["D/x"]
    assert results["t0"]["command"][-1] == "{data}/x"


# ---------------------------------------------------------------- the tasks of CoNLL-2003


@pytest.fixture
def options(tmp_path):
    def make(*extra):
        return conll_results.parse_arguments(
            ["--out", str(tmp_path / "out"), "--backbone", str(tmp_path), "--data", str(tmp_path), *extra]
        )

    return make


def context(name):
    """What a task of this name has its sentences read with."""
    if "joined" in name:
        return "document"
    return "preceding" if "preceding" in (name.rpartition("-by-")[2] or name) else "sentence"


def test_every_command_is_one_that_its_parser_takes(options):
    parser = ArgumentParser()
    add_train_arguments(parser)
    tasks = conll_results.conll_tasks(options("--extra", "--none-weight 0.25 --warmup 0.1", "--epochs", "3"))
    assert len({task.name for task in tasks}) == len(tasks) == 50
    makers = {task.makes for task in tasks}
    for task in tasks:
        assert task.reads is None or task.reads in makers
        if task.command[0] == "eval/run_eval.py":
            folder = [str(EVAL) if word == "{model}" else word for word in task.command[1:]]
            parsed = run_eval.parse_arguments(folder)
            assert parsed.calibrate in (None, "valid")
            assert parsed.context == context(task.name)
            assert (parsed.labels_from_map == "{words}") == (task.name == "label-words.test")
        elif "train" in task.command[:3]:
            parsed = parser.parse_args(task.command[3:])
            assert (parsed.epochs, parsed.warmup) == (3, 0.1)
            assert parsed.none_weight == {"none-weight-0.5": 0.5, "none-weight-2": 2.0}.get(task.name, 0.25)
            assert parsed.context == context(task.name)


def by_words(command):
    """The command for another start, which is asked for words instead of tags."""
    text = " ".join(command).replace("{backbone}", "{from-default}")
    text = text.replace("--labels PER ORG LOC MISC", "--label-map {words}")
    if text.startswith("eval/"):
        before, calibrate, after = text.partition(" --calibrate")
        text = f"{before} --labels-from-map {{words}}{calibrate}{after}"
    return tuple(text.split(" "))


def test_another_start_is_tuned_and_measured_as_the_backbone_is(options, tmp_path):
    plain = conll_results.conll_tasks(options())
    tasks = conll_results.conll_tasks(options("--start", f"from-default={tmp_path}"))
    assert [task for task in tasks if task.group != "starts"] == plain
    others = {task.name: task for task in tasks if task.group == "starts"}
    seeds = {task.name: task for task in plain if task.group == "seeds"}
    assert list(others) == [f"from-default-{name}" for name in seeds]
    for name, task in seeds.items():
        other = others[f"from-default-{name}"]
        assert other.command == by_words(task.command)
        for mine, theirs in ((other.reads, task.reads), (other.makes, task.makes)):
            assert mine == (None if theirs is None else f"from-default-{theirs}")


def test_each_start_is_a_folder_that_its_commands_read(tmp_path, monkeypatch):
    (tmp_path / "ner-model").mkdir()
    arguments = ["--out", str(tmp_path / "out"), "--backbone", str(tmp_path), "--data", str(tmp_path)]
    arguments += ["--start", f"again={tmp_path / 'ner-model'}", "--seeds", "1", "--only", "starts"]
    commands = []
    monkeypatch.setattr(Runner, "run", lambda self, tasks: commands.extend(map(self._command, tasks)) or [])
    assert conll_results.main(arguments) == 0
    assert len(commands) == 8
    for command in [command for command in commands if "train" in command]:
        assert command[command.index("--model") + 1] == str(tmp_path / "ner-model")
    for command in commands:
        option = "--label-map" if "train" in command else "--labels-from-map"
        assert json.loads(Path(command[command.index(option) + 1]).read_text())["PER"] == "person"


def test_sources_stand_for_the_train_split_and_context_words_for_every_passage(options):
    tasks = conll_results.conll_tasks(options("--extra", "--sources both.json", "--context-words", "77"))
    trainings = [task for task in tasks if "train" in task.command[:3]]
    for task in trainings:
        assert "--train" not in task.command
        assert task.command[task.command.index("--sources") + 1] == "both.json"
    for task in tasks:
        words = [task.command[at + 1] for at, word in enumerate(task.command) if word == "--context-words"]
        kind = next((task.command[at + 1] for at, word in enumerate(task.command) if word == "--context"), None)
        assert words == {None: [], "preceding": ["77"], "document": ["200"]}[kind]


def test_groups_and_folders_are_checked(options, capsys):
    for extra, said in (
        (("--only", "seeds,others"), "not others"),
        (("--seeds", "0"), "at least 1"),
        (("--data", "/nowhere/at/all"), "--data must name a folder"),
        (("--start", "other=/nowhere/at/all"), "--start other=DIR must name a folder"),
        (("--start", "/somewhere"), "is not NAME=DIR"),
        (("--start", "data=/somewhere"), "other than backbone, data"),
    ):
        with pytest.raises(SystemExit):
            options(*extra)
        assert said in capsys.readouterr().err


def test_a_result_of_another_recipe_is_refused(options, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--backbone", str(tmp_path), "--data", str(tmp_path)]
    first = conll_results.conll_tasks(options())[0]
    (tmp_path / "out.work" / first.name).mkdir(parents=True)
    write_results(tmp_path / "out", {first.name: first.recipe | {"result": {}}})
    assert conll_results.main([*arguments, "--list"]) == 0
    listed = capsys.readouterr().out
    assert not listed.startswith("preceding-0: ")
    assert "sentence-0: -m decodner_cli train" in listed
    assert conll_results.main([*arguments, "--list", "--learning-rate", "5e-4"]) == 1
    assert "result of preceding-0 made with '3e-4' where '5e-4'" in capsys.readouterr().err


def test_spread_is_mean_and_sample_deviation_in_percent():
    assert spread([]) == "-"
    assert spread([0.875]) == "87.5"
    assert spread([0.87, 0.88, 0.89]) == "88.0 ± 1.0"


def evaluated(f1, valid=0.9, seconds=1.0):
    scores = {"precision": f1 + 0.01, "recall": f1 - 0.01, "f1": f1}
    result = {"scores": scores, "calibration": {"f1": valid}, "coverage": {"candidate": 999, "wider_than_limit": 1},
              "speed": {"examples_per_second": 50.0}}  # fmt: skip
    return {"seconds": seconds, "result": result}


def classified(form, rate, valid, test):
    run = {"learning_rate": rate, "dev": {"f1": valid}, "test": dict.fromkeys(("precision", "recall", "f1"), test)}
    return {"seconds": 9.0, "result": {"results": {form: {"best": run}}}}


def test_a_table_of_nothing_is_an_error(tmp_path, capsys):
    assert conll_results.main(["--out", str(tmp_path / "nowhere"), "--table"]) == 1
    assert f"no results in {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_tables_say_what_was_measured(tmp_path, capsys):
    results = {f"sentence-{seed}": {"seconds": 70.0 + seed, "result": {}} for seed in range(3)}
    results |= {f"sentence-{seed}.test": evaluated(0.87 + seed / 100, 0.91) for seed in range(3)}
    results |= {f"sentence-{seed}.conllpp": evaluated(0.90) for seed in range(2)}
    results |= {"sentence-0.test-by-preceding": evaluated(0.80), "width-4": {"seconds": 30.0, "result": {}}}
    results |= {"from-default-sentence-0": {"seconds": 60.0, "result": {}}}
    results |= {"from-default-sentence-0.test": evaluated(0.95), "from-default-sentence-0.conllpp": evaluated(0.96)}
    results |= {"width-4.test": evaluated(0.85), "sentence-0.raw-exact.test": evaluated(0.7)}
    results |= {
        "causal-1e-3": classified("causal", 1e-3, 0.84, 0.78),
        "causal-1e-4": classified("causal", 1e-4, 0.85, 0.77),
    }
    write_results(tmp_path, results)
    assert conll_results.main(["--out", str(tmp_path), "--table"]) == 0
    said = capsys.readouterr().out
    for line in (
        "| backbone | sentence | sentence | 91.0 ± 0.0 | 89.0 ± 1.0 | 87.0 ± 1.0 | 88.0 ± 1.0 | 90.0 ± 0.0 | 71 ± 1 |",
        "| backbone | sentence | preceding | 90.0 | 81.0 | 79.0 | 80.0 | - | 71 ± 1 | 1 |",
        "| from-default | sentence | sentence | 90.0 | 96.0 | 94.0 | 95.0 | 96.0 | 60 | 1 |",
        "| **causal** | **0.0001** | **85.0** | **77.0** | **77.0** | **77.0** | **9** |",
        "| causal | 0.001 | 84.0 | 78.0 | 78.0 | 78.0 | 9 |",
        "ahead in test F1: 11.0 points over causal.",
        "| (base) | 91.0 | 87.0 | 99.90 | 70 | 50 |",
        "| width-4 | 90.0 | 85.0 | 99.90 | 30 | 50 |",
        "| raw-exact | - | 70.0 |",
    ):
        assert line in said.splitlines() or line in said
    assert "| preceding |" not in said.replace("| sentence | preceding |", "")
    assert said.count("| sentence | sentence |") == 2
    assert json.loads((tmp_path / "results.json").read_text()) == results
