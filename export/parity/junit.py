"""A parity report as JUnit's XML, for CI systems: a suite per stage, a case per gate."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from bertmp.export.parity.result import ParityReport, StageReport

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: ParityReport) -> str:
    """The document; stages without gates are one skipped case, as are gates that fail and do not count."""
    root = ElementTree.Element("testsuites", name="bertmp parity")
    for stage in result.stages:
        root.append(_suite(stage, result))
    if result.unchecked:
        root.append(_completeness(result))
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{result.seconds:.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _completeness(result: ParityReport) -> ElementTree.Element:
    """A case for each stage that counts and was not checked: a failure unless that is allowed."""
    suite = ElementTree.Element("testsuite", name="verdict", time="0", timestamp=result.created)
    for one in result.unchecked:
        case = ElementTree.SubElement(suite, "testcase", classname="parity.verdict", name=one.stage)
        if one.allowed:
            ElementTree.SubElement(case, "skipped", message=_clean(one.sentence()))
        else:
            ElementTree.SubElement(case, "failure", type="incomplete", message=_clean(one.sentence()))
    suite.set("tests", str(len(result.unchecked)))
    suite.set("failures", str(sum(not one.allowed for one in result.unchecked)))
    suite.set("skipped", str(sum(one.allowed for one in result.unchecked)))
    return suite


def _suite(stage: StageReport, result: ParityReport) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=stage.name, time=f"{stage.seconds:.3f}")
    suite.set("timestamp", result.created)
    gates = [gate for gate in result.gates if gate.stage == stage.name]
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name=gate.name)
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = _clean(gate.sentence)
        else:
            outcome = "failure" if gate.counts else "skipped"
            ElementTree.SubElement(case, outcome, type="gate", message=_clean(gate.sentence))
    if not gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name="runs")
        ElementTree.SubElement(case, "skipped", message=_clean(stage.reason or "no gate applies"))
    suite.set("tests", str(max(len(gates), 1)))
    suite.set("failures", str(sum(gate.counts and not gate.passed for gate in gates)))
    suite.set("skipped", str(sum(not gate.counts and not gate.passed for gate in gates) + (not gates)))
    return suite


def _clean(words: str) -> str:
    """Without the characters that XML cannot hold, such as an error message's control codes."""
    return _NOT_XML.sub("�", words)
