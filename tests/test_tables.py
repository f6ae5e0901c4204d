from mmseg_segmenter.tables import format_table, to_csv

ROWS = [['', 'IoU', 'pixels'], ['road', '9.50', 12], ['a|b', '-', 3]]


def test_columns_are_aligned():
    assert format_table(ROWS).splitlines() == ['       IoU  pixels', 'road  9.50      12', 'a|b      -       3']


def test_markdown():
    assert format_table(ROWS, markdown=True).splitlines() == [
        '|      |  IoU | pixels |',
        '| :----|----: |------: |',
        '| road | 9.50 |     12 |',
        r'| a\|b |    - |      3 |',
    ]


def test_csv_quotes_what_needs_it():
    assert to_csv([['a', 'b'], ['x,y', 1]]) == 'a,b\n"x,y",1\n'
