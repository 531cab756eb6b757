"""What a run would do and need, found out before it starts.

config --findings--> problems, shapes, sequences of each domain
       --estimates--> parameters, memory, time, disk
       --text--> what `llmshearing plan` prints and a run logs before its first step
"""
