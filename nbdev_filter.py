"Quarto `ipynb-filters` script: take nbdev's directives out of a notebook, so that Quarto sees none. Reads and writes JSON."
import json, re, sys

DIRECTIVE = re.compile(r'^\s*#\|\s*([\w-]+)(?=\s|$)(?!\s*:)')    # nbdev's directives have no colon, Quarto's have one
HIDDEN = {'hide', 'default_exp', 'exporti'}


def filter_cell(cell):
    "Drop nbdev directive lines; hide the cells that nbdev hides."
    if cell['cell_type'] != 'code': return cell
    lines = ''.join(cell['source']).splitlines(keepends=True)
    found = {m[1] for l in lines if (m := DIRECTIVE.match(l))}
    kept = [l for l in lines if not DIRECTIVE.match(l)]
    if found & HIDDEN: kept = ['#| include: false\n', *kept]
    return {**cell, 'source': kept}


def filter_notebook(nb):
    "The notebook without nbdev directives; a cell that held nothing else is left out."
    cells = [filter_cell(c) for c in nb['cells']]
    empty = lambda c: c['cell_type'] == 'code' and not ''.join(c['source']).replace('#| include: false', '').strip()
    return {**nb, 'cells': [c for c in cells if not empty(c)]}


if __name__ == '__main__': json.dump(filter_notebook(json.load(sys.stdin)), sys.stdout)
