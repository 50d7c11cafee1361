from __future__ import annotations

from decimal import Decimal

import pytest

from services.retriever.number_format import format_of, plain, shown


@pytest.mark.parametrize(
    ("value", "code", "expected"),
    [
        ("0.30000000000000004", "General", "0.3"),
        ("1234567", "General", "1234567"),
        ("4006381333931", "General", "4006381333931"),
        ("1E-3", "General", "0.001"),
        ("6.02E+23", "General", "6.02e+23"),
        ("0.5", "0%", "50%"),
        ("0.1234", "0.0%", "12.3%"),
        ("1234.5", "#,##0.00", "1,234.50"),
        ("1234.5", '#,##0.00 "€"', "1,234.50 €"),
        ("1234.5", "[$€-407] #,##0.00", "€ 1,234.50"),
        ("-1234.5", "#,##0.00;[Red]-#,##0.00", "-1,234.50"),
        ("-5", "0;(0)", "(5)"),
        ("0", '0;-0;"none"', "none"),
        ("-0.4", "0", "0"),
        ("2.5", "0", "3"),
        ("1.005", "0.00", "1.01"),
        ("1500000", '0.0,,"M"', "1.5M"),
        ("7", "000", "007"),
        ("2500000", '[>=1000000]0.0,,"M";[>=1000]0.0,"K";0', "2.5M"),
        ("25000", '[>=1000000]0.0,,"M";[>=1000]0.0,"K";0', "25.0K"),
        ("999", '[>=1000000]0.0,,"M";[>=1000]0.0,"K";0', "999"),
        ("-5", '[Red][<0]"minus "0;[Blue]0', "minus 5"),
        ("-5", "[<10]0.0;0", "-5.0"),
        ("1", '[=1]0" day";0" days"', "1 day"),
        ("2", '[=1]0" day";0" days"', "2 days"),
        ("7", "[<5]0.0;[>9]0.00", "7.00"),
        ("3.1", "0.##", "3.1"),
        ("3", "0.##", "3"),
        ("12", '0 "days"', "12 days"),
        ("12", '"No. "0', "No. 12"),
        ("0.75", "# ?/?", "0.75"),
        ("12345", "0.00E+00", "12345"),
        ("12", "@", "12"),
        ("45383", "dd.mm.yyyy", "2024-04-01"),
        ("45383.604166666664", "dd/mm/yyyy hh:mm", "2024-04-01 14:30"),
        ("45383.604166666664", "[$-409]d\\-mmm\\-yy h:mm:ss\\ AM/PM", "2024-04-01 14:30"),
        ("0.60420138888888886", "h:mm:ss", "14:30:03"),
        ("1.5", "[h]:mm:ss", "36:00:00"),
        ("45383", "mmm yyyy", "2024-04"),
        ("45383", "yyyy", "2024"),
        ("1", "yyyy-mm-dd", "1900-01-01"),
        ("59", "yyyy-mm-dd", "1900-02-28"),
        ("61", "yyyy-mm-dd", "1900-03-01"),
        ("-1", "yyyy-mm-dd", "-1"),
        ("1e300", "yyyy-mm-dd", "1e+300"),
        ("1e300", "#,##0", None),
        ("nan", "0.00", "nan"),
        ("no number", "0.00", "no number"),
        ("1", "\ue000\ue001 0", "1"),
        ("1", "", "1"),
        ("1", "0" * 5_000, None),
    ],
)
def test_a_number_is_shown_as_its_cell_shows_it(value, code, expected):
    text = shown(value, code, from_1904=False)
    assert text == expected if expected is not None else text


def test_days_may_be_counted_from_1904():
    assert shown("43921", "yyyy-mm-dd", from_1904=True) == "2024-04-01"


def test_formats_are_named_by_number_or_by_the_workbook():
    assert [format_of(number, {164: "0.0"}) for number in (0, 9, 14, 164, 999)] == ["General", "0%", "yyyy-mm-dd", "0.0", "General"]


def test_a_plain_number_has_the_digits_that_excel_knows():
    assert [plain(Decimal(text)) for text in ("1e15", "123456789.123456789", "-0.000012", "0")] == [
        "1000000000000000",
        "123456789.123457",
        "-0.000012",
        "0",
    ]
