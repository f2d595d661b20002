/* SPDX-License-Identifier: Apache-2.0 */
/* Text: UTF-16 and UTF-8, GUIDs, members of JSON objects. */
#ifndef SAMEWIRE_TEXT_H
#define SAMEWIRE_TEXT_H

#include "platform.h"

#define GUID_TEXT 37

struct slice {
	const char *at;
	size_t size;
};

/* Both return NULL for text that is not well-formed, or without memory; the result ends with a zero. */
char *utf8_from_utf16(PCWSTR text);
WCHAR *utf16_from_utf8(const char *text, size_t size, void *(*alloc)(size_t));

void guid_text(const GUID *guid, char text[GUID_TEXT]);
int guid_is_zero(const GUID *guid);
/* Take 36 characters of a GUID; -1 = it is none. */
int guid_take(struct slice text, char out[GUID_TEXT]);

/* Find a member of a JSON object: its value as written (text with its quotes). -1 = not there, or no object. */
int json_member(struct slice object, const char *name, struct slice *value);
/* The value as an integer of 32 bits; -1 = it is none. */
int json_u32(struct slice value, uint32_t *number);

#endif
