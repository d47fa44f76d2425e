"""Export: a folder that holds one found model and needs nothing but torch and safetensors.

    folder       export(): what is written, atomically, and checked against the trained module
    module_file  model.py: specialised classes, then one model class with every layer written out
    built, record, calls   the modules of an architecture, with which numbers each was constructed, those calls as text
    skeleton, stacks, units, running   the parts that hold the operators together; standins: in whose place
    collect      the source of the classes and functions in use
    definitions  that source told what one architecture never varies, and specialised
    sharing, inline   what layers hand on, and how parts are run, only where an architecture needs it
    program, facts   the source parsed, and what is known about each expression
    fold, unused, signature, text   specialisation: branches and options that never vary are edited away
    describe, card, selftest, render   words, model card, the folder's own test, layout of calls
"""

from __future__ import annotations

from .folder import export

__all__ = ["export"]
