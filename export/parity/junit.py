"""A parity run as JUnit's XML: a suite a stage, a test case a gate, for the pages of CI systems."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from bertmp.export.parity.result import ParityReport, StageReport

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: ParityReport) -> str:
    """The document; stages without gates are one skipped case."""
    root = ElementTree.Element("testsuites", name="bertmp parity")
    for stage in result.stages:
        root.append(_suite(stage, result))
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{result.seconds:.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(stage: StageReport, result: ParityReport) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=stage.name, time=f"{stage.seconds:.3f}")
    suite.set("timestamp", result.created)
    gates = [gate for gate in result.gates if gate.stage == stage.name]
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name=gate.name)
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = _clean(gate.sentence)
        else:
            ElementTree.SubElement(case, "failure", type="gate", message=_clean(gate.sentence))
    if not gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name="runs")
        ElementTree.SubElement(case, "skipped", message=_clean(stage.reason or "no gate applies"))
    suite.set("tests", str(max(len(gates), 1)))
    suite.set("failures", str(sum(not gate.passed for gate in gates)))
    suite.set("skipped", str(int(not gates)))
    return suite


def _clean(words: str) -> str:
    """Without the characters that XML cannot hold, such as an error message's control codes."""
    return _NOT_XML.sub("�", words)
