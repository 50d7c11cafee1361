#!/bin/bash
# python-docx 1.2.0: Paragraph.text of "The deposit is 77 euros for members." is "The deposit " when "is 77 euros" is a tracked insertion and the rest stands in a content control.
#
# Word marks what was typed while changes were tracked by an element (w:ins) around the runs, until somebody accepts it, and wraps what stands in a form's field or a template's
# placeholder by another one (w:sdt). Both are shown and printed like the words beside them. Paragraph.text joins the runs and hyperlinks right below the paragraph alone: what
# is wrapped is left out, without a warning, though the text is there; Document.paragraphs leaves out whole paragraphs that stand in a content control in the same way. Who takes texts for a
# search index loses the newest words of a contract under negotiation, and finds the sentence without its number. The XML has to be walked: all w:t but those of deletions.
#
# Versions: python-docx 1.2.0 (lxml 6.1.3, typing_extensions 4.16.0); Python 3.11.
# Seen:     Paragraph.text: 'The deposit '
#           all w:t of it:  'The deposit is 77 euros for members.'
#           paragraphs of the body: 1 of 2
# Needs python3.11 and pip. Installs into a temporary folder. Exit code 1 when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check python-docx==1.2.0 lxml==6.1.3 typing_extensions==4.16.0
"$folder/venv/bin/python" - "$folder/contract.docx" << 'PYTHON'
import sys

import docx
from docx.oxml import OxmlElement
from docx.oxml.ns import qn


def wrapped(element, *names):
    """Put an element into new ones of these names, the first outermost, in its place."""
    for name in reversed(names):
        wrapper = OxmlElement(name)
        element.addprevious(wrapper)
        wrapper.append(element)
        element = wrapper


document = docx.Document()
paragraph = document.add_paragraph("The deposit ")
wrapped(paragraph.add_run("is 77 euros")._r, "w:ins")
wrapped(paragraph.add_run(" for members.")._r, "w:sdt", "w:sdtContent")
wrapped(document.add_paragraph("A placeholder that was filled in.")._p, "w:sdt", "w:sdtContent")
document.save(sys.argv[1])

read = docx.Document(sys.argv[1])
text = read.paragraphs[0].text
whole = "".join(node.text for node in read.paragraphs[0]._p.iter(qn("w:t")))
counts = len(read.paragraphs), len(list(read.element.body.iter(qn("w:p"))))
print(f"Paragraph.text: {text!r}")
print(f"all w:t of it:  {whole!r}")
print(f"paragraphs of the body: {counts[0]} of {counts[1]}")
if (text, whole, counts) != ("The deposit ", "The deposit is 77 euros for members.", (1, 2)):
    sys.exit("another behaviour than the one that this finding describes")
PYTHON
