"""What a run would do and need, found out before it starts.

config --findings--> problems, shapes, sequences of each domain
       --estimates--> parameters, memory, time, disk
       --text--> what `python -m llmshearing.utils.plan` prints and a run logs before its first step
"""
