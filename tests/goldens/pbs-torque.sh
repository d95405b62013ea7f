#!/bin/bash
#PBS -N out
#PBS -l nodes=1:ppn=16:gpus=2
#PBS -l mem=80gb
#PBS -l walltime=02:00:00
#PBS -A ab12
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.end"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
exec >> /home/me/work/out.job/out.log 2>&1
