/* SPDX-License-Identifier: Apache-2.0 */
/* Handles of opened objects: a number for a kind and an ID, so that a wrong one is an error and not a crash. */
#ifndef SAMEWIRE_HANDLES_H
#define SAMEWIRE_HANDLES_H

#include "text.h"

enum kind { KIND_NONE, KIND_NETWORK, KIND_ENDPOINT, KIND_NAMESPACE, KIND_LOAD_BALANCER, KIND_ROUTE, KIND_SERVICE };

/* NULL without memory. */
void *handle_open(enum kind kind, const char *id);
/* 0, or -1 for a handle that is not open, or of another kind. */
int handle_id(void *handle, enum kind kind, char id[GUID_TEXT]);
int handle_close(void *handle, enum kind kind);

#endif
