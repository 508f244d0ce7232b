from __future__ import annotations

import gzip
import re

import pytest

from cofi_deploy.errors import DataError
from cofi_deploy.tasks.files import Problems, read_text, text_lines


def test_byte_order_mark_and_gzip_are_transparent(write):
    path = write("a.tsv.gz", gzip.compress("\ufeffsentence\tlabel\n".encode()))
    assert read_text(path) == "sentence\tlabel\n"


def test_truncated_gzip_names_the_file(write):
    path = write("a.tsv.gz", gzip.compress(b"hello" * 1000)[:-12])
    with pytest.raises(DataError, match=re.escape(f"{str(path)!r} is not a whole gzip file")):
        read_text(path)


def test_plain_text_called_gz_names_the_file(write):
    path = write("a.tsv.gz", "hello")
    with pytest.raises(DataError, match=re.escape(f"{str(path)!r} is not a whole gzip file")):
        read_text(path)


def test_latin_1_names_the_line_and_the_byte(write):
    path = write("a.tsv", b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n")
    with pytest.raises(DataError, match=re.escape(f"{str(path)!r} line 3: byte 0xe9 is not UTF-8")):
        read_text(path)


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["no bytes", "blank"])
def test_empty_file_is_refused(write, content):
    path = write("a.tsv", content)
    with pytest.raises(DataError, match=re.escape(f"{str(path)!r} is empty")):
        read_text(path)


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{str(tmp_path)!r} cannot be read")):
        read_text(tmp_path)


def test_lines_break_at_newlines_only():
    assert text_lines("a\u2028b\r\nc\x0cd\n") == ["a\u2028b", "c\x0cd"]


def test_the_tenth_problem_ends_the_search():
    problems = Problems("f.tsv")
    for line in range(1, 10):
        problems.add(f"line {line}", "bad", "label")
    with pytest.raises(DataError) as caught:
        problems.add("line 10", "worse")
    message = str(caught.value)
    assert message.startswith("'f.tsv' line 1, column 'label': bad; line 2,")
    assert message.endswith("line 10: worse (stopped after 10 problems)")
