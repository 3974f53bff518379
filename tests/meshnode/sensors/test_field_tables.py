"""CSV files as spreadsheets and loggers write them: other separators, other letters, blank rows, no values."""

import itertools
import math
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.numerals import NumeralInvalid, Numerals
from protocols.base.errors import ConfigError
from protocols.base.ids import NodeId

FIELD = Path(__file__).parent / "field"


def replayed(file: str | Path, limit: int = 10_000, **options: Any) -> tuple[list[Sample], DriverContext]:
    context = DriverContext(NodeId("n-1"), FIELD / "csv", Random(1), sensor="table")
    driver = create_driver("csv", {"file": str(file), **options}, context)
    return list(itertools.islice(driver.samples(), limit)), context


def table(folder: Path, *rows: str, header: str = "time_s,key,value") -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


# --- delimiter and decimal sign --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("semicolons_decimal_comma.csv", {"delimiter": ";", "decimal": ","}),
        ("quoted_decimal_comma.csv", {"decimal": ","}),
    ],
)
def test_table_with_decimal_commas_gives_numbers(file: str, options: dict[str, Any]) -> None:
    """A subscriber compares speeds with a limit: the text '13,9' is above every number, or an error."""
    got, context = replayed(file, **options)
    assert [(s.due_s, s.value, s.unit) for s in got] == [(0, 13.9, "m/s"), (0.5, 14.1, "m/s")]
    assert context.samples_skipped == 0


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("semicolons_decimal_comma.csv", {}, r"line 1: .*set delimiter = ';', and decimal = ','"),
        ("semicolons_decimal_comma.csv", {"delimiter": ";"}, r"line 2: 'time_s' is '0,0': set decimal = ','"),
        ("quoted_decimal_comma.csv", {}, r"line 2: 'value' is '13,9': set decimal = ','"),
        ("back_in_time.csv", {"delimiter": ";"}, r"line 1: .*set delimiter = ','$"),
    ],
)
def test_table_with_another_delimiter_or_decimal_sign_is_refused_with_the_option(
    file: str, options: dict[str, Any], says: str
) -> None:
    """A number must not become a text because nobody was asked. It is found before the node starts."""
    with pytest.raises(ConfigError, match=says):
        replayed(file, **options)


@pytest.mark.parametrize("delimiter", ["\t", "|", ":"])
def test_table_with_any_delimiter_is_read(tmp_path: Path, delimiter: str) -> None:
    """Loggers choose what they like."""
    path = table(tmp_path, f"0{delimiter}a{delimiter}1.5", header=delimiter.join(("time_s", "key", "value")))
    got, _ = replayed(path, delimiter=delimiter)
    assert [s.value for s in got] == [1.5]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delimiter": "tab"}, r"option 'delimiter' is 'tab': give the character between two cells, such as ';'"),
        ({"delimiter": "x"}, "option 'delimiter' is 'x'"),
        ({"delimiter": '"'}, "option 'delimiter' is"),
        ({"delimiter": "."}, "option 'delimiter' is"),
        ({"decimal": ";"}, r"option 'decimal' is ';': use one of"),
        ({"encoding": "latin-17"}, r"option 'encoding' is 'latin-17': give one that Python knows"),
        ({"encoding": "base64"}, "option 'encoding' is 'base64'"),
        ({"encoding": 1252}, "option 'encoding' is 1252: give a text"),
    ],
)
def test_table_option_that_is_wrong_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    """They are mistyped as easily as any other."""
    with pytest.raises(ConfigError, match=says):
        replayed("blank_rows.csv", **options)


@pytest.mark.parametrize(
    ("decimal", "text", "value"),
    [
        (".", "13.9", 13.9), (".", "13", 13), (".", "-0.5", -0.5), (".", "+5", 5), (".", ".5", 0.5), (".", "5.", 5.0),
        (".", " 7 ", 7), (".", "1e3", 1000.0), (".", "−3.5", -3.5), (".", "-inf", -math.inf),
        (".", "Infinity", math.inf),
        (".", "18446744073709551615", 2**64 - 1), (".", "18446744073709551616", float(2**64)),
        (".", '"13,9"', "13,9"), (".", '"007"', "007"), (".", "D", "D"), (".", "13.9 m/s", "13.9 m/s"),
        (".", "192.168.0.1", "192.168.0.1"), (".", "2024-01-02", "2024-01-02"), (".", "12:30", "12:30"),
        (".", "1.2.3", "1.2.3"), (".", "[1, 2.5]", [1, 2.5]), (".", "true", True), (".", "null", None),
        (".", "a,b", "a,b"),
        (",", "13,9", 13.9), (",", "13", 13), (",", "-,5", -0.5), (",", "1e3", 1000.0), (",", "13,9e1", 139.0),
        (",", "0.5", 0.5), (",", "0.500", 0.5), (",", "48.7655", 48.7655), (",", "[1.5,2]", [1.5, 2]),
        (",", "−3,5", -3.5), (",", "a,b", "a,b"),
    ],
)  # fmt: skip
def test_value_of_a_cell_is_what_a_reader_would_say(decimal: str, text: str, value: Any) -> None:
    """Numbers are numbers however they are written, and the rest stays as it is."""
    found = Numerals(decimal).value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("decimal", "text", "says"),
    [
        (".", "13,9", "set decimal"),
        (".", "1,234", "set decimal"),
        (".", "-,5", "set decimal"),
        (".", "1,234.5", "thousands"),
        (".", "1.234,5", "thousands"),
        (".", "1.234.567", "thousands"),
        (".", "1 234", "thousands"),
        (".", "1\u202f234,5", "thousands"),
        (".", "12'345.6", "thousands"),
        (".", "007", "leading zeros"),
        (".", "-01.5", "leading zeros"),
        (",", "1.234", "thousands"),
        (",", "1.234,5", "thousands"),
        (",", "1,234.5", "thousands"),
        (",", "07,5", "leading zeros"),
    ],
)
def test_value_that_may_be_two_numbers_is_refused(decimal: str, text: str, says: str) -> None:
    """Whichever was chosen, it would be silently wrong for somebody."""
    with pytest.raises(NumeralInvalid, match=says):
        Numerals(decimal).value(text)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(".,"))
def test_number_that_was_written_is_the_number_that_is_read(number: float, decimal: str) -> None:
    """Whatever the decimal sign, nothing is rounded or misread: it is read exactly, or refused."""
    text = repr(number).replace(".", decimal)
    assert Numerals(decimal).number(text) == number
    assert Numerals(decimal).value(text) == number


@given(st.text("0123456789.,+-eE '_nai", max_size=12), st.sampled_from(".,"))
def test_text_of_digits_and_signs_never_stays_a_text_that_python_takes_for_a_number(text: str, decimal: str) -> None:
    """A number is never turned into a text unasked, for everything that can be typed."""
    try:
        value = Numerals(decimal).value(text)
    except NumeralInvalid:
        return
    if isinstance(value, str) and "_" not in text and text.isascii():
        for spelled in (text, text.replace(",", ".")):
            with pytest.raises(ValueError, match="could not convert"):
                float(spelled)


# --- letters ---------------------------------------------------------------------------------------------------------
def test_table_in_another_encoding_is_refused_with_its_line_and_the_option() -> None:
    """The file is ASCII up to the degree sign in line 2."""
    with pytest.raises(ConfigError, match=r"latin1\.csv, line 2: it is not UTF-8: .*set encoding.* = 'cp1252'"):
        replayed("latin1.csv")
    for encoding in ("latin-1", "cp1252"):
        [sample], _ = replayed("latin1.csv", encoding=encoding)
        assert (sample.value, sample.unit) == (21.5, "°C")


def test_table_in_another_encoding_far_down_is_refused_with_its_line(tmp_path: Path) -> None:
    """Files are decoded in pieces: the fault must not be told of the line where its piece begins."""
    path = tmp_path / "t.csv"
    rows = [f"{n},a,{n}\n".encode() for n in range(3_000)]
    rows[2_500] = b"2500,a,\xb0C\n"
    path.write_bytes(b"time_s,key,value\n" + b"".join(rows))
    with pytest.raises(ConfigError, match=r"line 2502: it is not UTF-8"):
        replayed(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8", "utf-8-sig"])
def test_table_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    """Spreadsheets write it, and their "Unicode text" is UTF-16."""
    path = tmp_path / "t.csv"
    path.write_text("time_s,key,value,unit\n0,a,1,°C\n", encoding=encoding)
    got, _ = replayed(path, encoding=encoding)
    assert [(s.value, s.unit) for s in got] == [(1, "°C")]
    path.write_text("\ufefftime_s,key,value\n0,a,1\n", encoding="utf-8")
    assert replayed(path)[0][0].value == 1


def test_table_in_utf_16_is_named_as_such(tmp_path: Path) -> None:
    """Latin-1 would take every byte of it."""
    path = tmp_path / "t.csv"
    path.write_text("time_s,key,value\n0,a,1\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"line 1: it is not UTF-8: .*encoding = 'utf-16'"):
        replayed(path)
    with pytest.raises(ConfigError, match=r"line 1: .*NUL.*'utf-16'"):
        replayed(path, encoding="latin-1")


# --- rows ------------------------------------------------------------------------------------------------------------
def test_blank_rows_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Spreadsheets leave separators where a row was emptied."""
    got, context = replayed("blank_rows.csv")
    assert [(s.due_s, s.value) for s in got] == [(0, 1), (1, 2), (2, 3)]
    assert context.samples_skipped == 1
    [record] = caplog.records
    assert record.message.startswith("sensor table: 1 samples skipped, the last: file ")
    assert record.message.endswith("blank_rows.csv, line 4: the row is blank")


def test_row_without_a_value_gives_no_reading(tmp_path: Path) -> None:
    """A sensor that gave nothing did not give an empty text. Who means one writes two double quotes as JSON."""
    got, context = replayed(table(tmp_path, "0,a,1", "1,a,", "2,a,  ", '3,a,""""""', "4,a,null"))
    assert [(s.due_s, s.value) for s in got] == [(0, 1), (3, ""), (4, None)]
    assert context.samples_skipped == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x,a,1", "line 4: 'time_s' is 'x': give a number from"),
        (",a,1", "line 4: 'time_s' is empty: give seconds"),
        ("nan,a,1", "line 4: 'time_s' is 'nan': give a number from"),
        ("1,a", "line 4: the row has 2 cells, the header 3: add or remove some"),
        ("1,a,13,9", r"line 4: the row has 4 cells, the header 3: .*decimal comma into quotes"),
        ("1,a//b,1", "line 4: key 'a//b' has an empty chunk"),
        ('1,a,"1"2', "line 4: the row that begins in line 4 is malformed"),
        ("1,a,1.234.567", "line 4: 'value' is '1.234.567': remove what sets the thousands apart"),
        ("1,a,007", "line 4: 'value' is '007': remove the leading zeros"),
    ],
)
def test_bad_row_is_skipped_and_told_with_its_line(
    tmp_path: Path, row: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad row in a day of measurements must not cost the rest of the day."""
    got, context = replayed(table(tmp_path, "0,a,1", "1,a,2", row, "2,a,3"))
    assert [s.value for s in got] == [1, 2, 3]
    assert context.samples_skipped == 1
    [record] = caplog.records
    assert says.replace(".*", "") in record.message or says.split(".*")[1] in record.message


def test_quote_that_is_not_closed_counts_all_lines_that_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands behind it is lost, so the count has to say how much."""
    got, context = replayed(table(tmp_path, "0,a,1", '1,a,"2', "2,a,3", "3,a,4"))
    assert [s.value for s in got] == [1]
    assert context.samples_skipped == 3
    assert "line 5: the row that begins in line 3 is malformed" in caplog.text


@pytest.mark.parametrize("bad", ["x,a,1", "0,a", ",,"])
def test_table_without_a_single_good_row_is_refused_with_the_first_fault(tmp_path: Path, bad: str) -> None:
    """Skipping all of it would be a silent sensor."""
    with pytest.raises(ConfigError, match="line 2: "):
        replayed(table(tmp_path, *[bad] * 1_500))


def test_table_that_turns_bad_while_it_is_replayed_in_a_loop_ends(tmp_path: Path) -> None:
    """Without a good row time would not pass, and the loop would take a processor."""
    path = table(tmp_path, "0,a,1", "1,a,2")
    context = DriverContext(NodeId("n-1"), FIELD, Random(1))
    running = create_driver("csv", {"file": str(path), "loop": True}, context).samples()
    assert [next(running).value for _ in range(2)] == [1, 2]
    path.write_text("time_s,key,value\nx,a,1\n")
    with pytest.raises(ConfigError, match="line 2: 'time_s' is 'x'"):
        next(running)


def test_table_that_goes_back_in_time_is_refused_with_times_that_differ() -> None:
    """A message that says 'from 1.7e+09 to 1.7e+09' helps nobody."""
    with pytest.raises(ConfigError, match=r"line 4: time goes back from 1700000001\.5 to 1700000001\.0: sort the rows"):
        replayed("back_in_time.csv")


# --- other formats ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("cut_off.xml", r"line 1: this is XML\. Floating-car data of SUMO are for driver = 'fcd'"),
        ("sumo_output.csv", r"line 1: this is SUMO's CSV .*export it as XML, and replay it with driver = 'fcd'"),
    ],
)
def test_floating_car_data_are_sent_to_their_driver(file: str, says: str) -> None:
    """Whoever mixes the drivers up needs the name of the other one."""
    with pytest.raises(ConfigError, match=says):
        replayed(FIELD / "fcd" / file)


def test_table_that_is_compressed_is_named(tmp_path: Path) -> None:
    """The traces that come along are compressed, so people try it."""
    shutil.copy(Path(__file__).parents[3] / "meshnode/sensors/data/ingolstadt.fcd.xml.gz", tmp_path / "t.csv")
    with pytest.raises(ConfigError, match=r"line 1: this is a gzip file: unpack it"):
        replayed(tmp_path / "t.csv")
