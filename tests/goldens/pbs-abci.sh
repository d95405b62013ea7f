#!/bin/bash
#PBS -N out
#PBS -l select=1
#PBS -l walltime=02:00:00
#PBS -q rt_HF
#PBS -P gaa50000
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.end"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
source /etc/profile.d/modules.sh
exec >> /home/me/work/out.job/out.log 2>&1
