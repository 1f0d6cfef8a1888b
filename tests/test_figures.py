from __future__ import annotations

import re

import pytest
from PIL import Image

from saeuron.figures import labelled_grid
from saeuron.report import Report

RED, BLUE = Image.new("RGB", (64, 64), "#ff0000"), Image.new("RGB", (64, 64), "#0000ff")


def test_pictures_stand_where_their_labels_are():
    sheet = labelled_grid([[RED, BLUE], [BLUE, RED]], ["one", "two"], ["left", "right"], tile=32, marked=[(0, 1)])
    right, bottom = sheet.width - 20, sheet.height - 20
    assert sheet.getpixel((right, bottom)) == (255, 0, 0)
    assert sheet.getpixel((right - 36, bottom)) == (0, 0, 255)
    assert sheet.getpixel((right, bottom - 36)) == (0, 0, 255)
    with pytest.raises(ValueError, match="do not fit"):
        labelled_grid([[RED]], ["one"], ["left", "right"])


def test_a_report_is_one_file_that_asks_for_nothing(tmp_path):
    page = Report("A < B")
    page.heading("Heading & more")
    page.text("<script>alert(1)</script>")
    page.table(["name", "value"], [["<b>", "1 %"]])
    page.picture(RED, 'a "red" square')
    page.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script>" not in text
    assert "<b>" not in text
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "data:image/png;base64," in text
    assert text.count("<tr>") == 2
