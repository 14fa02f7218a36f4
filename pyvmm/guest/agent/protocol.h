// SPDX-License-Identifier: Apache-2.0
// docs/reference/agent-protocol.md, in C. pyvmm/guest/protocol.py is the same in Python.
#pragma once

#define PORT_NAME "org.pyvmm.agent.0"
#define MAGIC "pyvmm\0\r\n" // 8 bytes
#define MAGIC_SIZE 8
#define NONCE_SIZE 16
#define PROTOCOL_VERSION 1

#define HEADER_SIZE 8 // type, stream, session (16 bits), length of the payload (32 bits)
#define MAX_PAYLOAD 16384
#define MAX_SPEC 65536
#define MAX_SESSIONS 16
#define INPUT_WINDOW 65536

// From the host
#define HELLO 1
#define SPEC 2
#define START 3
#define INPUT 4
#define CREDIT 5
#define SIGNAL 6
#define POWEROFF 7
// From the agent
#define READY 17
#define OUTPUT 18
#define TAKEN 19
#define EXIT 20

// START
#define START_SIZE 16
#define KIND_RUN 0
#define KIND_PUT 1
#define KIND_GET 2
#define FLAG_NEW_ROOT 1

// EXIT
#define HOW_EXITED 0
#define HOW_KILLED 1
#define HOW_FAILED 2
#define STAGE_RESOURCES 1
#define STAGE_ROOT 2
#define STAGE_DIRECTORY 3
#define STAGE_PROGRAM 4
#define STAGE_FILE 5
