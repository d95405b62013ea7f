#!/bin/bash
#PBS -N out
#PBS -l select=1:system=polaris
#PBS -l place=scatter
#PBS -l filesystems=home
#PBS -l walltime=02:00:00
#PBS -q debug
#PBS -A merging
#PBS -k doe
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.log"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
