"""What a training log tells: rows -> signals -> symptoms -> findings -> report. No torch.

``logs`` reads rows, ``signals`` gives them one name each and keeps their ``trends``, the symptoms of
``optimisation``, ``policy`` and ``reward`` test them, ``diagnosis`` raises findings, which ``report``
prints.
"""
