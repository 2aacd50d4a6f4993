#!/usr/bin/env python3
"""Tests of the generator's parts that need no container: the last line is N passed, N failed, N skipped."""

import contextlib
import copy
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import generate
import generated
import judge
import mutate
import sequences
import shrink
import world


class Shrinking(unittest.TestCase):
    CASE = {"name": "x", "bundles": {"a": {"config": {"keep": {"a": 1, "b": [1, 2, 3, {"c": "here"}]}, "drop": {"x": [1] * 40}}},
                                     "b": {"config": {}}},
            "steps": [["create", "{a}"], ["state", "{b}"], ["kill", "{a}", "9"]]}

    def test_only_what_matters_stays(self):
        def fails(case):
            return '"c": "here"' in json.dumps(case["bundles"].get("a", {})) and any(s[0] == "kill" for s in case["steps"])
        small = shrink.shrink(self.CASE, fails, 300)
        self.assertEqual(small["bundles"], {"a": {"config": {"keep": {"b": [{"c": "here"}]}}}})
        self.assertEqual(small["steps"], [["kill", "{a}", "9"]])

    def test_it_is_bounded_and_leaves_its_input_alone(self):
        before, tries = copy.deepcopy(self.CASE), []
        shrink.shrink(self.CASE, lambda case: tries.append(case) is not None, 25)
        self.assertEqual((len(tries), self.CASE), (25, before))

    def test_what_cannot_be_smaller_stays(self):
        self.assertEqual(shrink.shrink(self.CASE, lambda case: False, 1000), self.CASE)


class Bounds(unittest.TestCase):
    """Nothing may wait for ever."""

    def test_a_child_is_waited_for_no_longer_than_that(self):
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(1)
        self.assertIsNone(world.within(pid, 0.05))
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(world.within(pid, 5), (pid, signal.SIGKILL))

    def test_no_worker_ignores_what_the_caller_ignores(self):
        class Run:
            def __init__(self, case, runtime, worker):
                pass

            def result(self):
                step = subprocess.run(["grep", "SigIgn", "/proc/self/status"], stdout=subprocess.PIPE, check=True)
                return {"ignored": int(step.stdout.split()[1], 16)}

        nothing = {"join": lambda pid: None, "alone": lambda: None, "Run": Run}
        # As bash has it for a job in the background.
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGQUIT)]
        try:
            with tempfile.TemporaryDirectory() as work, mock.patch.multiple(world, WORK=Path(work), **nothing):
                pool = world.Pool("test", 0, os.environ["PATH"], 1)
                found = dict(pool.run([("one", {"name": "one"}, "true")]))
                pool.close()
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        mask = sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGQUIT))
        self.assertEqual(found["one"]["ignored"] & mask, 0)

    def test_a_case_that_hangs_is_ended_and_told(self):
        class Run:
            state = "/nothing"

            def __init__(self, case, runtime, worker):
                self.hangs = case["name"] == "hangs"

            def cgroups(self):
                return []

            def result(self):
                time.sleep(60 if self.hangs else 0)
                return {"fine": True}

        nothing = {"join": lambda pid: None, "alone": lambda: None, "Run": Run}
        with tempfile.TemporaryDirectory() as work, \
                mock.patch.multiple(world, CASE_LIMIT=0.3, WORK=Path(work), **nothing):
            pool = world.Pool("test", 0, os.environ["PATH"], 1)
            found = dict(pool.run((name, {"name": name}, "true") for name in ("hangs", "ends")))
            pool.close()
        self.assertEqual(found["hangs"]["left"], ["everything: it did not end"])
        self.assertEqual(found["ends"], {"fine": True})


class Generating(unittest.TestCase):
    def test_a_name_makes_the_same_case_again(self):
        for make in (generate.valid, mutate.invalid, sequences.sequence):
            for number in range(20):
                self.assertEqual(make(7, number), make(7, number))
            self.assertNotEqual(make(7, 1)["bundles"], make(8, 1)["bundles"])

    def test_cases_can_be_printed_and_read(self):
        for make in (generate.valid, mutate.invalid, sequences.sequence):
            for number in range(300):
                case = make(3, number)
                self.assertEqual(json.loads(json.dumps(case)), case)

    def test_every_feature_and_change_is_used(self):
        used = set()
        for feature in generate.FEATURES:
            config = generate.table.base()
            feature(generate.random.Random(1), config)
            used.add(feature)
        self.assertEqual(used, set(generate.FEATURES))
        for change in mutate.CHANGES:
            config = generate.table.base()
            before = copy.deepcopy(config)
            change(mutate.random.Random(2), config)
            self.assertNotEqual(config, before, change.name)


class Judging(unittest.TestCase):
    def test_what_is_of_the_moment_is_replaced(self):
        state = {"id": "x", "pid": 71, "status": "running", "created": "2026-01-01T00:00:00Z", "annotations": {"a": "b"}}
        found = judge.output(["state", "x"], json.dumps(state))
        self.assertEqual((found["state.pid"], found["state.created"], found["state.annotations.a"]), ('"PID"', '"TIME"', '"b"'))
        self.assertEqual(judge.output(["state", "x"], json.dumps(state | {"pid": 0}))["state.pid"], "0")

    def test_tables(self):
        text = ("ID          PID         STATUS      BUNDLE      CREATED                          OWNER\n"
                "b           0           stopped     /b          2026-11-27T21:00:00.123Z         root\n"
                "a           4711        running     /a          2026-11-27T21:00:00.123Z         root\n")
        found = judge.output(["list"], text)
        self.assertEqual(found["row a"], "a PID running /a TIME root")
        self.assertEqual(found["row b"], "b 0 stopped /b TIME root")

    def test_measurements_have_a_shape(self):
        found = judge.output(["events", "--stats", "x"], '{"type":"stats","data":{"cpu":{"usage":{"percpu":[1,2]}},"x":0.5}}\n')
        self.assertEqual(found, {"events.type": '"stats"', "events.data.cpu.usage.percpu": '["number"]', "events.data.x": '"number"'})

    def test_messages(self):
        self.assertEqual(judge.message('time="x" level=warning msg="no"\ntime="x" level=error msg="a \\"b\\""\n'), 'a "b"')
        self.assertEqual(judge.message("isorun: plain\n"), "isorun: plain")
        self.assertEqual(judge.phrases("isorun: container not running"), "container not running")

    def test_a_refused_step_differs_in_that_alone(self):
        ours, theirs = {"exit status": "0", "a": "1", "left behind": ""}, {"exit status": "1", "refused": "no", "phrases": "", "left behind": ""}
        self.assertEqual(judge.differences(ours, theirs), [("verdict", "taken", "refused: no")])
        both = {"exit status": "1", "refused": "other words", "phrases": "", "left behind": "cgroup"}
        self.assertEqual(judge.differences(both, theirs), [("left behind", "cgroup", "")])
        self.assertEqual(judge.differences(theirs, theirs), [])

    def test_what_isorun_alone_changes_is_no_race(self):
        first = [("exit status", "1", "0"), ("umask", "0022", "0002"), ("0 start| verdict", "taken", "refused: x")]
        ours = {"exit status": "0", "umask": "0022", "0 start| refused": "x"}
        theirs = {"exit status": "0", "umask": "0022", "0 start| refused": "x"}
        self.assertEqual(judge.unsteady(first, ours, theirs),
                         [("exit status", "unsteady: '1', then '0'", "0"),
                          ("0 start| verdict", "unsteady: 'taken', then 'refused: x'", "refused: x")])
        self.assertEqual(judge.unsteady(first[1:2], ours, theirs), [])

    def test_conditions(self):
        config = {"linux": {"namespaces": [{"type": "user"}, {"type": "pid"}], "seccomp": None}, "mounts": [{"options": ["ro"]}]}
        for condition, holds in (("linux.namespaces[].type=user", True), ("linux.namespaces[].type=uts", False), ("linux.seccomp", False),
                                 ("mounts[].options[]=r*", True), ("process.terminal", False), ("linux", True)):
            self.assertEqual(judge.holds(config, condition), holds, condition)

    def test_an_entry_explains_what_it_names_and_no_more(self):
        case = {"name": "valid:1:2", "view": "v2", "bundles": {"a": {"config": {"linux": {"seccomp": {}}}}}}
        entry = {"runtimes": ["runc"], "fields": "kill| verdict", "isorun": "taken", "with": ["linux.seccomp"]}
        self.assertIs(judge.excuse([entry], case, ("3 kill| verdict", "taken", "refused: x")), entry)
        self.assertEqual(entry["used"], 1)
        # Conditions on more than names and values.
        case["bundles"]["a"]["config"] = {"linux": {"maskedPaths": ["/etc/keys", "/link"]}, "mounts": [
            {"destination": "/run/../data", "options": ["bind", "atime"]}, {"destination": "/tmp", "options": ["ro"]},
            {"destination": "/outward/x", "options": []}, {"destination": "/tmp/./x", "options": []}]}
        for change, field, fits in (({"at": "linux.maskedPaths[]"}, "mount /etc/keys #2 flags", True),
                                    ({"at": "linux.maskedPaths[]"}, "mount /etc/group flags", True),
                                    ({"at": "linux.maskedPaths[]"}, "mount /etc flags", False),
                                    ({"option": "atime"}, "mount /data flags", True),
                                    ({"option": ["atime"]}, "mount /tmp flags", False),
                                    ({"stacked": True}, "mount /data flags", False),
                                    ({"stacked": True}, "mount /tmp/x #2 flags", True)):
            entry = {"runtimes": ["runc"], "fields": "mount * flags"} | change
            self.assertEqual(judge.excuse([entry], case, (field, "rw", "rw,nosuid")) is not None, fits, (change, field))

    def test_a_configuration_that_is_written_by_hand(self):
        entry = {"runtimes": ["runc"], "fields": "verdict", "with": ["process.CWD"]}
        for text, fits in (('{"process": {"CWD": "/"}}', True), ('{"process": {"cwd": "/"}}', False), ("{", False), (None, False),
                           ("[" * 20000, False)):
            case = {"name": "x", "view": "v2", "bundles": {"a": {"config": {"process": {"CWD": "/"}}, "text": text}}}
            self.assertEqual(judge.excuse([entry], case, ("verdict", "refused: x", "taken")) is not None, fits, text)

    def test_warnings_on_a_terminal_come_before_the_document(self):
        taken = {"step": ["tty", "run", "x"], "status": "0", "err": "", "out": 'WARN no\r\n{"umask": "0022"}\r\n'}
        self.assertEqual(judge.step_fields(taken, {}, [])["umask"], "0022")
        self.assertNotIn("umask", judge.step_fields(taken | {"step": ["run", "x"]}, {}, []))

    def test_what_follows_a_step(self):
        case = {"name": "x", "view": "v2", "bundles": {}, "steps": [
            ["create", "{a}"], ["kill", "{a}", "TERM"], ["gone", "a"], ["state", "{a}"], ["kill", "{a}", "KILL"], ["state", "{a}"]]}
        entry = {"runtimes": ["runc"], "fields": "state.status", "after": ["kill * TERM", "kill {?}"]}
        for field, fits in (("2 state| state.status", True), ("4 state| state.status", False), ("1 kill| state.status", False),
                            ("state.status", False)):
            self.assertEqual(judge.excuse([entry], case, (field, "created", "stopped")) is not None, fits, field)

    def test_the_tables_have_no_keys_that_nobody_reads(self):
        for entry in generated.load():
            self.assertLessEqual(entry.keys(), judge.KEYS | {"own"}, entry["reason"])
            self.assertTrue({"fields", "with", "without"} & entry.keys(), entry["reason"])
            if "cases" not in entry and entry.get("view") != "machine":
                self.assertNotIn(entry["fields"], ("*", ["*"]), entry["reason"])

    def test_an_entry_that_is_not_needed_is_told_of(self):
        for entry, told in (({}, True), ({"optional": True}, False), ({"optional": True, "pending": True}, True),
                            ({"used": 1}, False), ({"used": 1, "pending": True}, False)):
            self.assertEqual(bool(generated.stale([{"own": True} | entry])), told, entry)

    def test_what_is_pending_is_skipped(self):
        class Nothing:
            pass
        case = {"name": "x", "view": "v2", "bundles": {}, "steps": [["run"]]}
        found = {(0, "isorun"): {"exit status": "1"}, (0, "runc"): {"exit status": "3"}}
        for pending, key in ((True, "skipped"), (False, "passed")):
            options = Nothing()
            options.all = False
            entry = {"runtimes": ["runc"], "fields": "exit status", "reason": "it is being built", "pending": pending}
            judgement = generated.Judgement(None, [entry], options)
            with contextlib.redirect_stdout(io.StringIO()):
                judgement.judge(case, found, 0)
            self.assertEqual(dict(judgement.counts), {key: 1})

    def test_features_are_compared_word_by_word(self):
        ours, theirs = (judge.output(["features"], json.dumps({"hooks": words, "linux": {"x": {"enabled": True}}}))
                        for words in (["poststop"], ["prestart", "poststop"]))
        self.assertEqual(judge.differences(ours, theirs), [("features.hooks prestart", "-", "listed")])

    def test_an_entry_explains_no_other_case(self):
        case = {"name": "valid:1:2", "view": "v2", "bundles": {"a": {"config": {"linux": {"seccomp": {}}}}}}
        entry = {"runtimes": ["runc"], "fields": "kill| verdict", "isorun": "taken", "with": ["linux.seccomp"]}
        for change in ({"view": "v1"}, {"without": ["linux.seccomp"]}, {"isorun": "no"}, {"fields": "exec| verdict"}, {"said": "x"},
                       {"runtimes": ["crun"]}, {"with": ["process"]}, {"cases": "invalid:*"}, {"other": "y"}):
            self.assertIsNone(judge.excuse([entry | change], case, ("3 kill| verdict", "taken", "refused: x")), change)


if __name__ == "__main__":
    result = unittest.TextTestRunner(verbosity=1).run(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]))
    bad = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - bad} passed, {bad} failed, 0 skipped")
    sys.exit(1 if bad else 0)
